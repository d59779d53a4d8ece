"""Model folders before and after: read as the dense model they hold, and what their files take; rounding to int8 by rows.

Promise: `round_to_nearest` gives W ≈ scale[out, 1] × q with q in -127..127 and |W - scale × q| ≤ scale / 2; `load_dense` refuses what is
no causal language model, not whole, or compressed already. Price: the weights once.
Source: rounding is LLM.int8()'s absmax (arXiv 2208.07339) by rows.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import nn

from train.model_folder import STORED_OTHERWISE, load_model, stored_names

__all__ = ["copy_the_rest", "disk_bytes", "linear_layers", "load_dense", "round_to_nearest"]

_INT8_MAX = 127
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
_REWRITTEN = ("config.json", "manifest.json", "compression.json", "README.md")


def round_to_nearest(weight: torch.Tensor, scale_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`weight` [out, in] as (q int8 [out, in], scale [out, 1] in `scale_dtype`), rounded against the scale as it is stored.

    >>> q, scale = round_to_nearest(torch.tensor([[0.5, -1.0, 0.25], [0.0, 0.0, 0.0]]), torch.float32)
    >>> q.tolist(), [round(s, 5) for s in scale.flatten().tolist()]
    ([[64, -127, 32], [0, 0, 0]], [0.00787, 1.0])
    """
    wide = weight.detach().to(torch.float32)
    largest = wide.abs().amax(dim=1, keepdim=True)
    scale = torch.where(largest > 0, largest / _INT8_MAX, torch.ones_like(largest))
    scale = scale.clamp_(min=torch.finfo(scale_dtype).tiny).to(scale_dtype)
    q = torch.round(wide / scale.to(torch.float32)).clamp_(-_INT8_MAX, _INT8_MAX).to(torch.int8)
    return q, scale


def load_dense(folder: Path, dtype: torch.dtype | Literal["auto"] = "auto") -> nn.Module:
    """The causal language model of a Hugging Face folder, its weights as stored.

    Raises ValueError when the folder's architecture is no causal language model that transformers knows, when its weights are
    compressed already, and when they cannot be read or are not all there.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    described = json.loads((folder / "config.json").read_text())
    if described.get("quantization_config"):
        raise ValueError(f"{folder}: this model is quantised already; compress the model it was made from")
    if any(name.endswith(STORED_OTHERWISE) for name in stored_names(folder)):
        raise ValueError(f"{folder}: this model is compressed already; compress the model it was made from")
    names = ", ".join(described.get("architectures") or [str(described.get("model_type"))])
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError):
        raise ValueError(f"{folder}: transformers does not know the architecture {names}; compress takes causal language models") from None
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(f"{folder}: {names} is not a causal language model; compress takes models that generate text")
    return load_model(folder, dtype)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Module path -> linear layer, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def copy_the_rest(source: Path, output: Path) -> None:
    """Tokenizer, chat template, generation settings: every file that is neither weights nor written anew."""
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.endswith(_NOT_COPIED) and file.name not in _REWRITTEN and not file.name.startswith("."):
            shutil.copyfile(file, output / file.name)


def disk_bytes(folder: Path) -> Mapping[str, int]:
    """Bytes of the weight files in a model folder by what they hold: matrices, scales, embeddings, other; and their total on disk.

    `matrices` holds dense, packed, thinned and factored weights; `scales` also zero points, masks and the recorded shapes.
    """
    sizes = {"matrices": 0, "scales": 0, "embeddings": 0, "other": 0, "total": 0}
    for file in sorted(folder.glob("*.safetensors")):
        sizes["total"] += file.stat().st_size
        with safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            for name in names:
                part = tensors.get_slice(name)
                size = math.prod(part.get_shape()) * _WIDTH.get(part.get_dtype(), 2)
                sizes[_kind(name, len(part.get_shape()) > 1 or f"{name}_bitmask" in names)] += size
    return sizes


_WIDTH = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}


def _kind(name: str, is_matrix: bool) -> str:
    if name.endswith(("weight_scale", "weight_shape", "weight_zero_point", "weight_bitmask")):
        return "scales"
    if "embed" in name or ".wte." in name or ".wpe." in name:
        return "embeddings"
    return "matrices" if is_matrix else "other"
