"""Weights to int8, one symmetric scale per output channel, exported in the compressed-tensors format.

Promise: for every chosen matrix W [out, in], W ≈ scale[out, 1] × q with q in -127..127 and |W - scale × q| ≤ scale / 2; the
folder loads in transformers (AutoModelForCausalLM), in vLLM and in our engine, each with these same numbers. What is not
chosen is stored as it was. Price: round to nearest takes no data and one pass over the weights; half the bytes of bf16.
Source: the compressed-tensors library packs and describes; rounding is LLM.int8()'s absmax (arXiv 2208.07339) by rows.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

__all__ = ["Matrix", "copy_the_rest", "disk_bytes", "export_int8", "linear_layers", "load_dense", "plan_int8", "round_to_nearest"]

_INT8_MAX = 127
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
_REWRITTEN = ("config.json", "manifest.json", "compression.json", "README.md")


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """What becomes of one linear layer's weight, and why."""

    name: str
    """Module path in the model."""
    rows: int
    columns: int
    option: str
    """What it is stored as: keep or int8."""
    bytes_before: int
    bytes_after: int
    """Bytes of the weight with its scales and shape."""
    reason: str


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


def load_dense(folder: Path, dtype: torch.dtype | str = "auto") -> nn.Module:
    """The causal language model of a Hugging Face folder, its weights as stored.

    Raises ValueError when the folder's architecture is no causal language model that transformers knows, and when its
    weights are quantised already.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging as transformers_log

    described = json.loads((folder / "config.json").read_text())
    if described.get("quantization_config"):
        raise ValueError(f"{folder}: this model is quantised already; compress the model it was made from")
    names = ", ".join(described.get("architectures") or [str(described.get("model_type"))])
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError):
        raise ValueError(f"{folder}: transformers does not know the architecture {names}; compress takes causal language models") from None
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(f"{folder}: {names} is not a causal language model; compress takes models that generate text")
    transformers_log.disable_progress_bar()  # a bar per file says nothing; the stage shows its own
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Module path -> linear layer, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def plan_int8(model: Any, *, lm_head: bool) -> list[Matrix]:
    """int8 for every linear layer of a transformers model; the output layer only when it is untied and `lm_head` asks for it.

    Raises ValueError when the model has no linear layer to compress.
    """
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    plan = []
    for name, layer in linear_layers(model).items():
        if layer is head and tied:
            plan.append(_matrix(name, layer, "keep", "tied to the embedding"))
        elif layer is head and not lm_head:
            plan.append(_matrix(name, layer, "keep", "output layer: kept unless lm_head is set"))
        else:
            plan.append(_matrix(name, layer, "int8", "linear layer"))
    if not any(matrix.option == "int8" for matrix in plan):
        raise ValueError(f"{type(model).__name__}: no linear layers that int8 could store; this architecture cannot be compressed yet")
    return plan


def _matrix(name: str, layer: nn.Linear, option: str, reason: str) -> Matrix:
    rows, columns = layer.weight.shape
    before = layer.weight.numel() * layer.weight.element_size()
    packed = rows * math.ceil(columns / 4) * 4 + rows * layer.weight.element_size() + 2 * 8  # int32 words, scales, the shape
    after = before if option == "keep" else packed
    return Matrix(name=name, rows=rows, columns=columns, option=option, bytes_before=before, bytes_after=after, reason=reason)


def export_int8(model: Any, plan: list[Matrix], source: Path, output: Path) -> None:
    """Quantise `model` in place as `plan` says and write it to `output`, with the tokenizer and the other files of `source`."""
    from compressed_tensors.compressors import ModelCompressor, compress_module
    from compressed_tensors.quantization import QuantizationStatus, apply_quantization_config

    apply_quantization_config(model, _description(plan), show_progress=False)
    layers = linear_layers(model)
    compressor = ModelCompressor.from_pretrained_model(model, "pack-quantized")
    for matrix in plan:
        if matrix.option == "int8":
            layer = layers[matrix.name]
            q, scale = round_to_nearest(layer.weight, layer.weight.dtype)
            layer.weight.data = q.to(torch.float32) * scale.to(torch.float32)  # exact, so that the library finds the same q
            layer.weight_scale.data = scale
            compress_module(layer, compressor.force_compression_format)
    compressor.quantization_config.quantization_status = QuantizationStatus.COMPRESSED
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    compressor.update_config(str(output))
    copy_the_rest(source, output)


def _description(plan: list[Matrix]) -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    weights = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")
    group = QuantizationScheme(targets=["Linear"], weights=weights)
    kept = [matrix.name for matrix in plan if matrix.option == "keep"]
    return QuantizationConfig(config_groups={"int8": group}, ignore=kept, format="pack-quantized")


def copy_the_rest(source: Path, output: Path) -> None:
    """Tokenizer, chat template, generation settings: every file that is neither weights nor written anew."""
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.endswith(_NOT_COPIED) and file.name not in _REWRITTEN and not file.name.startswith("."):
            shutil.copyfile(file, output / file.name)


def disk_bytes(folder: Path) -> Mapping[str, int]:
    """Bytes of the weight files in a model folder by what they hold: matrices, scales, embeddings, other; and their total on disk.

    `matrices` holds dense and packed weights of two dimensions; `scales` also zero points and the recorded shapes.
    """
    sizes = {"matrices": 0, "scales": 0, "embeddings": 0, "other": 0, "total": 0}
    for file in sorted(folder.glob("*.safetensors")):
        sizes["total"] += file.stat().st_size
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  safe_open is no mapping
                part = tensors.get_slice(name)
                size = math.prod(part.get_shape()) * _WIDTH.get(part.get_dtype(), 2)
                sizes[_kind(name, len(part.get_shape()))] += size
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


def _kind(name: str, dimensions: int) -> str:
    if name.endswith(("weight_scale", "weight_shape", "weight_zero_point")):
        return "scales"
    if "embed" in name or ".wte." in name or ".wpe." in name:
        return "embeddings"
    return "matrices" if dimensions >= 2 else "other"
