"""Adapter folders: what was trained, written alone, and put back onto its model.

Promise: `adapter_config.json` and `adapter_model.safetensors`, as peft has them; for peft's methods they are peft's, and AdaLoRA's
ranks are written as the LoRA adapter that they are, which the engine serves by name. BitFit and bottleneck adapters, which peft has
not, use the same two files with types of their own. Price: the tensors alone.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from train.model_folder import first_line
from train.tuning.biases import with_biases
from train.tuning.bottleneck import Bottleneck, with_bottlenecks
from train.tuning.embeddings import updates_of
from train.tuning.prompted import Prompted

__all__ = ["peft_quiet", "with_adapter", "write_biases", "write_bottlenecks", "write_low_rank", "write_ranks"]

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
_PROMPTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING")


@contextmanager
def peft_quiet() -> Iterator[None]:
    """Without what peft warns of and we have seen to: it asks transformers for gradient checkpointing by the name of before, and fears for
    tied matrices."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # the update is one as well, written twice
        yield


def with_adapter(model: PreTrainedModel, folder: Path) -> Any:
    """`model`, changed in place, with the adapter in `folder` on it. Raises ValueError when it does not fit or cannot be read."""
    try:
        config = json.loads((folder / _CONFIG).read_text())
        kind = config["peft_type"]
        if kind == "BITFIT":
            return _loaded(with_biases(model), folder)
        if kind == "BOTTLENECK":
            return _loaded(with_bottlenecks(model, config["width"], config["targets"]), folder)
        with peft_quiet():
            tuned = PeftModel.from_pretrained(model, folder)
        _check_all_loaded(tuned, folder)
    except Exception as error:  # peft, safetensors and json each have their own
        raise ValueError(f"{folder}: no adapter of this model ({first_line(error)}); give the model that it was tuned from") from None
    return Prompted(tuned) if kind in _PROMPTS else tuned


def write_biases(model: PreTrainedModel, folder: Path) -> None:
    """BitFit's biases."""
    _write({"peft_type": "BITFIT"}, _trained(model), model, folder)


def write_bottlenecks(model: PreTrainedModel, folder: Path) -> None:
    """The adapters that `with_bottlenecks` put into the model."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Bottleneck)}
    targets = sorted({name.split(".")[-1] for name in found})
    width = next(iter(found.values())).down.out_features
    _write({"peft_type": "BOTTLENECK", "width": width, "targets": targets}, _trained(model), model, folder)


def write_low_rank(model: PeftModel, folder: Path) -> None:
    """LoRA's updates; those of embedding and output layer as peft has them, each its own."""
    model.save_pretrained(folder)
    found = updates_of(model.get_base_model())
    if not found:
        return
    tensors, config = load_file(folder / _TENSORS), json.loads((folder / _CONFIG).read_text())
    for name, (kind, update) in found.items():
        a, b = update.a.detach(), update.b.detach()
        parts = {"lora_embedding_A": b.T, "lora_embedding_B": a.T} if kind is nn.Embedding else {"lora_A.weight": a, "lora_B.weight": b}
        tensors |= {f"{_PEFT_PREFIX}{name}.{part}": tensor.contiguous().clone() for part, tensor in parts.items()}
    config["target_modules"] = sorted({*config["target_modules"], *found})
    (folder / _CONFIG).write_text(json.dumps(config, indent=2))
    save_file(tensors, folder / _TENSORS)


def write_ranks(model: PeftModel, folder: Path) -> None:
    """AdaLoRA's updates as LoRA: singular values and scale multiplied into B, pruned ranks left out."""
    adapter, base = model.active_adapter, model.get_base_model()
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, module in base.named_modules():
        if not hasattr(module, "lora_E"):
            continue
        values = module.lora_E[adapter].detach().float()
        kept = values[:, 0] != 0
        if kept.any():
            scale = module.scaling[adapter] / (float(module.ranknum[adapter]) + 1e-5)
            ranks[name] = int(kept.sum())
            tensors[f"{_PEFT_PREFIX}{name}.lora_A.weight"] = module.lora_A[adapter].detach().float()[kept].contiguous()
            tensors[f"{_PEFT_PREFIX}{name}.lora_B.weight"] = (module.lora_B[adapter].detach().float() * values.T * scale)[
                :, kept
            ].contiguous()
    assert ranks, "an AdaLoRA update without a single rank"
    usual = Counter(ranks.values()).most_common(1)[0][0]
    unusual = {name: rank for name, rank in ranks.items() if rank != usual}  # alpha is the rank itself: the scale is in B
    settings = LoraConfig(
        r=usual, lora_alpha=usual, rank_pattern=unusual, alpha_pattern=unusual, target_modules=sorted(ranks), task_type="CAUSAL_LM",
        base_model_name_or_path=base.name_or_path, inference_mode=True,
    )  # fmt: skip
    settings.save_pretrained(str(folder))
    save_file(tensors, folder / _TENSORS)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def _write(config: dict[str, Any], tensors: dict[str, Tensor], model: PreTrainedModel, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": model.name_or_path}, indent=2))
    save_file(tensors, folder / _TENSORS)


def _check_all_loaded(tuned: PeftModel, folder: Path) -> None:
    """ValueError unless the adapter's tensors are those that the model has places for: peft passes over what is too much or too little."""
    settings = tuned.active_peft_config
    layers = tuned.get_base_model().config.get_text_config().num_hidden_layers
    if settings.peft_type == "PREFIX_TUNING" and settings.num_layers != layers:
        raise ValueError(f"it has keys and values for {settings.num_layers} layers, the model has {layers}")
    wanted = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))  # only what was added to them, where they are adapted
    there = set(load_peft_weights(str(folder), device="cpu"))
    if wanted != there:
        raise ValueError(f"its tensors are not the model's, such as {min(wanted ^ there)}")


def _loaded(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    tensors = load_file(folder / _TENSORS)
    known = _trained(model)
    if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in known.items()}:
        raise ValueError("its tensors are not the model's")
    with torch.no_grad():
        for name, tensor in tensors.items():
            model.get_parameter(name).copy_(tensor)
    return model
