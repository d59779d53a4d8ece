"""Model folders: what every later stage opens, whoever made them.

Promise: `open_model` takes a folder of pretrain, tune or compress (checked against its manifest) or any plain Hugging
Face folder (checked for config, tokenizer and weights), local or s3://, and gives a local path and a digest;
`write_model` writes such a folder. Price: one read of the weights to digest them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyarrow import fs as arrow_fs

from cluster.artifact import open_artifact
from cluster.storage import MANIFEST, content_digest, downloaded, resolve

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Weights = dict[str, "torch.Tensor"]

__all__ = [
    "MODEL_STAGES",
    "STORED_OTHERWISE",
    "copy_tokenizer",
    "first_line",
    "is_quantised",
    "load_model",
    "load_tokenizer",
    "open_adapter",
    "open_model",
    "stored_names",
    "tuned_from",
    "write_model",
]

MODEL_STAGES = ("pretrain", "tune", "compress")
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.json",
    "merges.txt", "tokenizer.model",
)  # fmt: skip
STORED_OTHERWISE = (".weight_packed", ".weight_scale", ".weight_bitmask", ".weight_right")
"""How the names of a compressed matrix' tensors end."""
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_TOLD = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # what is lacking is told, and refused in our words


def open_model(uri: str) -> tuple[Path, str]:
    """A local path of the model folder at `uri`, and the digest of its contents.

    Raises ValueError naming what is missing: the folder, config.json, the tokenizer or the weights.
    """
    names = _names(uri)
    if not names:
        raise ValueError(f"{uri}: no such model folder; give one from `sterna {' or '.join(MODEL_STAGES)}`, or a Hugging Face folder")
    if "adapter_config.json" in names and "config.json" not in names:
        raise ValueError(f"{uri}: is an adapter without its model; run `sterna tune` with --merge, or give the base model")
    path, digest = _opened(uri, names, MODEL_STAGES)
    _check(uri, names, path)
    return path, digest


def open_adapter(uri: str) -> tuple[Path, str]:
    """A local path of the adapter folder at `uri`, and the digest of its contents; ValueError where there is none."""
    names = _names(uri)
    if "adapter_config.json" not in names:
        raise ValueError(f"{uri}: no adapter (adapter_config.json); `sterna tune --no-merge` makes one, or peft's save_pretrained")
    return _opened(uri, names, ("tune",))


def tuned_from(adapter: Path) -> str | None:
    """The digest of the model that the adapter in a folder of `sterna tune` was tuned from; None for others' adapters."""
    manifest = adapter / MANIFEST
    return _read_json(str(adapter), manifest).get("inputs", {}).get("model") if manifest.exists() else None


def _opened(uri: str, names: set[str], stages: tuple[str, ...]) -> tuple[Path, str]:
    if MANIFEST in names:
        artifact = open_artifact(uri, made_by=stages)
        return artifact.local(), artifact.digest
    digest = content_digest(uri)
    return downloaded(uri, digest) if "://" in uri else Path(resolve(uri)[1]), digest


def is_quantised(folder: Path) -> bool:
    """Whether the weights in a model folder are stored quantised."""
    return bool(_read_json(str(folder), folder / "config.json").get("quantization_config"))


def load_model(folder: Path, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
    """The causal language model of a folder with dense weights in `dtype`, compressed ones widened; auto: as a dense folder stores them.

    Raises ValueError when transformers knows no causal language model of that architecture, and when the weights are not all there:
    transformers alone would draw what is missing at random, with a warning.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging as transformers_log

    transformers_log.disable_progress_bar()  # a bar per file says nothing; the stages show their own
    try:
        state = _widened(folder, dtype)
        if state is None:
            model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **_TOLD)
        else:
            config = AutoConfig.from_pretrained(folder)
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            kind = AutoModelForCausalLM._model_mapping[type(config)]
            model, found = kind.from_pretrained(None, config=config, state_dict=state, dtype=dtype, **_TOLD)
    except SafetensorError as error:
        raise ValueError(f"{folder}: its weights cannot be read ({first_line(error)}); copy them again") from None
    except (ValueError, KeyError) as error:
        raise ValueError(f"{folder}: not a causal language model that transformers loads ({first_line(error)})") from None
    lacking = sorted({*found["missing_keys"], *(key[0] for key in found["mismatched_keys"])})
    if lacking:
        raise ValueError(
            f"{folder}: config.json asks for {len(lacking)} weights that are not there in that shape, such as {lacking[0]}; "
            "give the configuration that belongs to the weights"
        )
    return model


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder. Raises ValueError when transformers cannot read it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(f"{folder}: its tokenizer cannot be read ({first_line(error)}); restore tokenizer.json") from None


def first_line(error: Exception) -> str:
    """What a library says, to its first line's end; its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def stored_names(folder: Path) -> list[str]:
    """The names of the tensors in a local model folder, file by file. Raises ValueError when a file cannot be read."""
    from safetensors import SafetensorError, safe_open

    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                names += opened.keys()
        except SafetensorError as error:
            raise ValueError(f"{folder}: its weights cannot be read ({file.name}: {first_line(error)}); copy them again") from None
    return names


def _widened(folder: Path, dtype: torch.dtype | Literal["auto"]) -> Weights | None:
    """All weights of a compressed folder as plain ones, read by the engine's reader; None where they are plain already.

    transformers itself dequantises a folder by one scheme for all of it, and plans mix them.
    """
    import torch

    from serve.engine.weights import Weights as Stored
    from serve.engine.weights import read_config

    names = stored_names(folder)
    packed = {name.rpartition(".")[0] for name in names if name.endswith(STORED_OTHERWISE)}
    if not packed:
        return None
    assert isinstance(dtype, torch.dtype), "compressed weights have no type of their own"
    stored = Stored(folder, read_config(folder), dtype, torch.device("cpu"))
    modules = sorted(module for module in packed if f"{module}.weight" in stored or f"{module}.weight_packed" in stored)
    plain = [name for name in names if name.rpartition(".")[0] not in packed or name.endswith(".bias")]
    return {f"{module}.weight": stored.table(module) for module in modules} | {name: stored.tensor(name) for name in plain}


def write_model(model: PreTrainedModel, folder: Path, *, dtype: torch.dtype, tokenizer: Path, state: Weights | None = None) -> None:
    """Write `model` as a Hugging Face folder.

    Weights (`state`, or the model's own parameters) go as safetensors in `dtype`; the tokenizer's files are
    copied from the folder `tokenizer`; generation_config decodes greedily unless a caller samples.
    """
    from transformers import GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    config.use_cache = True
    weights = dict(model.named_parameters()) if state is None else state  # named once each: tied weights are written once
    cast = {name: weight.detach().to(dtype) for name, weight in weights.items()}
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder, state_dict=cast)
    config.dtype = dtype  # save_pretrained records the type that the model has in memory
    config.save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy the files of a tokenizer from one folder to another, byte for byte."""
    destination.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, destination / name)


def _names(uri: str) -> set[str]:
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type == arrow_fs.FileType.File:
        raise ValueError(f"{uri}: is a file; give the model's folder")
    found = filesystem.get_file_info(arrow_fs.FileSelector(path, allow_not_found=True))
    return {info.base_name for info in found if info.type == arrow_fs.FileType.File}


def _check(uri: str, names: set[str], path: Path) -> None:
    if "config.json" not in names:
        raise ValueError(f"{uri}: no config.json; a model folder in Hugging Face form is needed")
    _read_json(uri, path / "config.json")
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        raise ValueError(f"{uri}: no tokenizer (tokenizer.json); copy the tokenizer's files into the model folder")
    if names & set(_WEIGHTS):
        return
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        raise ValueError(f"{uri}: weights are pickled, not safetensors; convert them with `save_pretrained(..., safe_serialization=True)`")
    raise ValueError(f"{uri}: no weights (model.safetensors); copy them into the model folder")


def _read_json(uri: str, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{uri}: {path.name} is not JSON with names and values ({error}); restore it") from None
