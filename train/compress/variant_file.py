"""Variants of a model's matrices in one file: what one process worked out, as another needs it.

Promise: what is read is what was written, and stays in the file: its pages are read when they are asked for, and are the system's to let
go. Price: the stored tensors, on disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from train.compress.candidates import Variant
from train.compress.options import option

__all__ = ["read_variants", "write_variants"]


def write_variants(path: Path, variants: Mapping[str, Variant]) -> None:
    """Write `variants` (module path -> variant) as one safetensors file."""
    tensors = {f"{name}:{key}": tensor.contiguous() for name, variant in variants.items() for key, tensor in variant.tensors.items()}
    save_file(tensors, path, metadata={"options": json.dumps({name: variant.option.name for name, variant in variants.items()})})


def read_variants(path: Path) -> dict[str, Variant]:
    """What `write_variants` wrote."""
    with safe_open(path, framework="pt") as opened:
        names = json.loads(opened.metadata()["options"])
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for key in opened.keys():  # noqa: SIM118  safe_open is no mapping
            name, _, part = key.rpartition(":")
            parts[name][part] = opened.get_tensor(key)
    return {name: Variant(option(chosen), parts[name]) for name, chosen in names.items()}
