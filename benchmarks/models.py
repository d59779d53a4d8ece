"""The models that are measured: where each lies, or how it is made; and their int8 and int4 versions.

Promise: a folder is made once, in a scratch folder beside it that is renamed when it is whole; quantised folders are compressed-tensors
`pack-quantized` (int8 with a scale per output channel, int4 with one per 64 inputs), read by transformers, vLLM and us alike. Price: a
few seconds per GB. Source: round to nearest; the compressed-tensors library packs the bits.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cluster.console import say
from train.compress.quantize import round_to_nearest

__all__ = ["MODELS", "Facts", "facts", "model_folder"]

MODELS = ("tiny-code", "llama-135m", "llama-1b")
GROUP = 64
Facts = dict[str, Any]


def model_folder(name: str, models: Path, made: Path, weights: str = "bf16") -> Path:
    """The folder of a model of MODELS (or of any folder) in `weights` bf16, int8 or int4; made under `made` if it is not there."""
    plain = _plain(name, models, made)
    if weights == "bf16":
        return plain
    target = made / f"{plain.name}-{weights}"
    if not (target / "config.json").exists():
        say(f"{target}: writing {weights} weights")
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        quantised(plain, scratch, weights)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    return target


def _plain(name: str, models: Path, made: Path) -> Path:
    for folder in (Path(name), models / name, made / name):
        if (folder / "config.json").exists():
            return folder
    if name not in MODELS:
        raise ValueError(f"model: {name} is neither a model folder nor one of {', '.join(MODELS)}; give one of them")
    if name == "tiny-code":
        raise ValueError(f"model: no folder {models / name}; set STERNA_MODELS to the folder that holds it")
    say(f"{made / name}: writing random weights")
    subprocess.run([sys.executable, "-m", "benchmarks.random_model", "--shape", name, "--out", str(made / name)], check=True)
    return made / name


def quantised(source: Path, target: Path, weights: str) -> None:
    """Write `source` with its matrices as int8 or int4; the embedding stays as it is, and an output layer tied to it parts from it."""
    target.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text())
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                weight = opened.get_tensor(name)
                tensors |= _packed(name, weight, weights)
                if name.endswith("embed_tokens.weight") and config.get("tie_word_embeddings"):
                    tensors |= _packed("lm_head.weight", weight, weights)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config["tie_word_embeddings"] = False
    scheme = {"strategy": "channel"} if weights == "int8" else {"strategy": "group", "group_size": GROUP}
    scheme |= {"num_bits": 8 if weights == "int8" else 4, "type": "int", "symmetric": True, "dynamic": False}
    group = {"targets": ["Linear"], "weights": scheme, "input_activations": None, "output_activations": None}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [],
    }
    (target / "config.json").write_text(json.dumps(config, indent=1))
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja", ".txt") and file.name != "config.json" and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)


def _packed(name: str, weight: torch.Tensor, weights: str) -> dict[str, torch.Tensor]:
    if weight.ndim != 2 or (".layers." not in name and name != "lm_head.weight"):
        return {name: weight}
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    if weights == "int8":
        q, scale = round_to_nearest(weight, weight.dtype)
    else:
        rows = weight.to(torch.float32).reshape(-1, GROUP)
        scale = (rows.abs().amax(1, keepdim=True) / 7.5).clamp(min=1e-8).to(weight.dtype)
        q = torch.round(rows / scale.to(torch.float32)).clamp(-8, 7).to(torch.int8).reshape(weight.shape)
        scale = scale.reshape(weight.shape[0], -1)
    shape = torch.tensor(weight.shape, dtype=torch.int64)
    packed = pack_to_int32(q, 8 if weights == "int8" else 4).contiguous()
    return {f"{name}_packed": packed, f"{name}_scale": scale, f"{name}_shape": shape}


def facts(folder: Path) -> Facts:
    """What a decoding step must read: `step_bytes` (all weights; of an untied embedding only the rows looked up), and the vocabulary."""
    config = json.loads((folder / "config.json").read_text())
    total = embedding = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                part = opened.get_slice(name)
                size = math.prod(part.get_shape()) * {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8}[part.get_dtype()]
                total += size
                embedding += size * name.endswith("embed_tokens.weight")
    tied = config.get("tie_word_embeddings", False)
    return {"weight_bytes": total, "step_bytes": total - (0 if tied else embedding), "vocab_size": config["vocab_size"]}
