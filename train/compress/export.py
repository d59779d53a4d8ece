"""Writing a compressed model: for now int8 by rows, in the compressed-tensors format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.compress.candidates import Variant
from train.compress.quantize import export_int8, plan_int8

__all__ = ["export"]


def export(model: Any, variants: Mapping[str, Variant], source: Path, output: Path, *, dense: bool = False) -> None:
    """Write `model` to `output` with `variants` in the place of its weights, and the other files of `source`."""
    plan = plan_int8(model, lm_head=False)
    if dense or {matrix.name for matrix in plan if matrix.option == "int8"} != variants.keys():
        raise ValueError("options: only int8 for every linear layer can be written yet")
    export_int8(model, plan, source, output)
