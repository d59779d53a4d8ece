"""A LoRA adapter's folder, read and checked: which low-rank update belongs to which projection.

Promise: y = x Wᵀ + scale · (x Aᵀ) Bᵀ for each adapted projection, as peft computes it (scale = alpha / r, or alpha / √r with rsLoRA,
with peft's patterns for single modules). What is not of this form is refused in one line. Price: the folder's tensors, read once.
Papers: LoRA (arXiv 2106.09685), rsLoRA (2312.03732). Format: peft's adapter_config.json and adapter_model.safetensors.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from serve.engine.parts import Parts
from serve.engine.shape import Shape

__all__ = ["Place", "Update", "places", "read_adapter"]

_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module's output stands: rows [first, first + num_rows) of a layer's product (`Adapters` in model.py names them)."""

    layer: int
    product: str
    first: int
    num_rows: int
    num_columns: int


@dataclass(frozen=True, slots=True)
class Update:
    """What an adapter adds to one module: (x Aᵀ) Bᵀ, the scale multiplied into B. a [r, K], b [N, r], in float32 at least."""

    place: Place
    a: Tensor
    b: Tensor


def places(shape: Shape, parts: Parts) -> dict[str, Place]:
    """Every module of the lean decoder that an adapter can change: attention's projections and dense MLPs'."""
    attention, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    found: dict[str, Place] = {}
    for i, layer in enumerate(parts.layers):
        products = {"qkv": (layer.qkv, (attention, kv, kv), shape.hidden_size), "out": (layer.out, (shape.hidden_size,), attention)}
        if layer.mlp is not None and layer.router is None:
            sizes = (shape.mlp_size,) * (2 if shape.gated else 1)
            products["gate_up"] = (layer.mlp.gate_up, sizes, shape.hidden_size)
            products["down"] = (layer.mlp.down, (shape.hidden_size,), shape.mlp_size)
        for product, (modules, sizes, num_columns) in products.items():
            sizes = sizes if len(modules) == len(sizes) else (sum(sizes),)
            for j, module in enumerate(modules):
                found[module] = Place(i, product, sum(sizes[:j]), sizes[j], num_columns)
    return found


def read_adapter(folder: Path, known: dict[str, Place]) -> tuple[list[Update], bytes]:
    """The updates in a peft folder, and a digest of it. ValueError, in one line, for what the engine does not run beside others."""
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    for file in files:
        if not file.is_file():
            raise ValueError(f"adapter: {folder} has no {file.name}; save the adapter with peft's save_pretrained")
    try:
        config: dict[str, Any] = json.loads(files[0].read_text())
        with safe_open(str(files[1]), framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises a bare exception type of its own
        raise ValueError(f"adapter: {folder} cannot be read ({error}); save the adapter again") from None
    if (reason := _refusal(config)) is not None:
        raise ValueError(f"adapter: {folder} {reason}; {_advice(config)}")
    digest = blake2b(digest_size=16)
    for file in files:
        digest.update(file.read_bytes())
    return _updates(folder, config, tensors, known), digest.digest()


def _refusal(config: dict[str, Any]) -> str | None:
    """What of an adapter is more than low-rank updates of matrices."""
    if config.get("peft_type") != "LORA":
        return f"is of type {config.get('peft_type')}, and the engine runs LORA side by side"
    named = {
        "use_dora": "uses DoRA",
        "modules_to_save": "replaces whole modules (modules_to_save)",
        "trainable_token_indices": "replaces embeddings (trainable_token_indices)",
        "layer_replication": "repeats layers (layer_replication)",
        "lora_bias": "adds biases (lora_bias)",
    }
    reason = next((words for name, words in named.items() if config.get(name)), None)
    if reason is None and config.get("bias", "none") != "none":
        reason = f"trains biases (bias={config['bias']})"
    return reason


def _advice(config: dict[str, Any]) -> str:
    """What to do with an adapter that is refused: those that add something to the architecture cannot be folded into its weights."""
    if config.get("peft_type") in ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "BOTTLENECK"):
        return "tune the model with lora, rslora or adalora instead, or with a method that gives a whole model"
    return "merge it into the model (`sterna tune` does, or peft's merge_and_unload) and serve that"


def _updates(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], known: dict[str, Place]) -> list[Update]:
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.removeprefix(_PREFIX).rpartition(".lora_")
        if part not in ("A.weight", "B.weight") or module not in known:
            raise ValueError(
                f"adapter: {folder} changes {name.removeprefix(_PREFIX)}, which this model has not, or not as one matrix; "
                "use an adapter of this model's attention and dense MLP projections"
            )
        pairs.setdefault(module, {})[part[0]] = tensor
    updates = []
    for module, pair in sorted(pairs.items()):
        place, a, b = known[module], pair.get("A"), pair.get("B")
        if a is None or b is None or a.shape != (b.shape[1], place.num_columns) or len(b) != place.num_rows:
            raise ValueError(
                f"adapter: {folder}: {module} does not fit this model ({place.num_rows} x {place.num_columns}); use its own base"
            )
        wide = torch.promote_types(b.dtype, torch.float32)
        updates.append(Update(place, a.to(wide), b.to(wide) * _scale(config, module, len(a))))
    if not updates:
        raise ValueError(f"adapter: {folder} changes nothing; train it first")
    return updates


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rsLoRA; a pattern names a module by its end or by a regular expression, as in peft.

    >>> _scale({"lora_alpha": 16, "alpha_pattern": {"q_proj": 4}}, "model.layers.0.self_attn.q_proj", 8)
    0.5
    """
    patterns = config.get("alpha_pattern") or {}
    alpha = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), config.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
