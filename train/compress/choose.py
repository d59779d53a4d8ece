"""What each matrix becomes: the one option for all, or what the search finds within the budget.

Promise: a choice names an option, its bytes and a reason for every matrix of the model. Price: uniform, one rounding of each
matrix (and a pass over the calibration texts if the option asks for one); searched, see search.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.console import progress
from train.compress.calibrate import CompressibleMatrix, Moments, matrices, moments, weight_of
from train.compress.candidates import Variant, degraded
from train.compress.options import Option, has_kernel

__all__ = ["Choice", "calibrated", "row_of", "uniform"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A plan, what it makes of the weights, and how it came about."""

    variants: Mapping[str, Variant]
    """Module path -> the weight as it will be stored; what is kept is not here."""
    rows: Sequence[Mapping[str, Any]]
    """Per matrix: name, rows, columns, option, bytes_before, bytes_after, has_kernel, reason."""
    trail: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """Every plan that was judged on the search's prompts: bytes, figures, what it was tried for."""
    passes: float = 0.0
    """Passes over the search's prompts that this took."""
    bolder: Choice | None = None
    """A smaller plan beyond the budget, from which recovery may win enough back."""


class _WhenAsked(Mapping[str, Moments]):
    """Moments that are worked out when the first of them is asked for."""

    def __init__(self, make: Callable[[], Mapping[str, Moments]]) -> None:
        self._make = functools.cache(make)

    def __getitem__(self, name: str) -> Moments:
        return self._make()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._make())

    def __len__(self) -> int:
        return len(self._make())


def calibrated(model: Any, choices: Sequence[Option], sequences: Sequence[list[int]]) -> Mapping[str, Moments]:
    """The moments of the matrices' inputs, where one of the options asks for them; no pass is made before one is looked at."""
    if not any(option.needs_moments or option.kind == "lowrank" for option in choices):
        return {}

    def make() -> Mapping[str, Moments]:
        with progress("compress: what the matrices read", len(sequences), "texts") as advance:
            return moments(model, sequences, progress=advance)

    return _WhenAsked(make)


def uniform(model: Any, option: Option, known: Mapping[str, Moments], *, lm_head: bool) -> Choice:
    """`option` for every linear layer; the output layer only where it is untied and `lm_head` asks for it."""
    variants: dict[str, Variant] = {}
    rows = []
    found = matrices(model)
    with progress(f"compress: {option.name}", len(found), "matrices") as advance:
        for matrix in found:
            kept = _why_kept(matrix, lm_head=lm_head)
            if kept is None:
                variants[matrix.name] = degraded(weight_of(model, matrix.name), option, known.get(matrix.name))
            rows.append(row_of(matrix, variants.get(matrix.name), kept or "the one option for every linear layer"))
            advance()
    return Choice(variants=variants, rows=rows)


def _why_kept(matrix: CompressibleMatrix, *, lm_head: bool) -> str | None:
    if matrix.role == "linear" or (matrix.role == "head" and lm_head):
        return None
    return {"head": "output layer: kept unless lm_head is set", "tied": "embedding and output layer in one", "embedding": "embedding"}[
        matrix.role
    ]


def _bytes_after(matrix: CompressibleMatrix, variant: Variant | None) -> int:
    if variant is None:
        return matrix.bytes
    return 0 if variant.option.name == "drop-block" else matrix.stored_bytes(variant.option)


def row_of(matrix: CompressibleMatrix, variant: Variant | None, reason: str) -> dict[str, Any]:
    """A matrix' line in compression.json."""
    return {
        "name": matrix.name,
        "rows": matrix.rows,
        "columns": matrix.columns,
        "option": variant.option.name if variant else "keep",
        "bytes_before": matrix.bytes,
        "bytes_after": _bytes_after(matrix, variant),
        "has_kernel": variant is None or has_kernel(variant.option),
        "reason": reason,
    }
