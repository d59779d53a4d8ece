"""What a worker holds of a run: stretches of parameters with their optimizer state, by the parameter's name.

Promise: a checkpoint is a set of fragments, each the values of one kind (the weight, an optimizer's moment) for one stretch of one
parameter, in float32; so any number of workers, sharded in any way, reads what any other wrote, with nothing to convert.
Price: a copy in host memory of what the worker holds (12 bytes a parameter for AdamW, divided by the workers), for as long as it is
being written. Source: the idea of DeepSpeed's universal checkpoint (arXiv 2406.18820), made the only form there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["WEIGHT", "Fragment", "Held", "Parts", "Piece", "load", "pieces_of_optimizer", "snapshot"]

WEIGHT = "weight"
"""The kind that is the parameter itself; every other is a key of its optimizer's state."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """Values of one kind, of the elements [start, start + len) of a flattened parameter."""

    name: str
    kind: str
    start: int
    values: Tensor
    """[n] float32, in host memory."""
    scalar: bool = False
    """Whether it is one number for the whole parameter, such as the optimizer's count of steps."""


class Parts(Protocol):
    """Fragments to read from, wherever they are."""

    def kinds(self, name: str) -> Sequence[str]:
        """What there is of a parameter; empty if it is unknown."""

    def read(self, name: str, kind: str, start: int, count: int) -> Tensor:
        """[count] float32; ValueError where an element is missing."""

    def is_scalar(self, name: str, kind: str) -> bool:
        """Whether the optimizer keeps one number of this kind for the whole parameter."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a parameter that this worker holds: a window into the live tensors, not a copy."""

    name: str
    start: int
    """Of the stretch in the flattened parameter."""
    count: int
    master: Tensor
    """The float32 tensor that the optimizer updates, of any shape; the stretch lies in it, flattened, at `offset`."""
    offset: int
    state: dict[str, Any]
    """The optimizer's state of the whole of `master`; it may be empty before the first step."""
    shared: bool = False
    """Whether every worker holds the same."""
    scalars_on: torch.device | str | None = "cpu"
    """Where the optimizer keeps its scalars, as torch's do as tensors; None: as plain numbers (DeepSpeed's own optimizers)."""

    def window(self, tensor: Tensor) -> Tensor:
        """The stretch in a tensor laid out like `master`."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.count)


def pieces_of_optimizer(named: Iterable[tuple[str, Tensor]], optimizer: torch.optim.Optimizer) -> list[Piece]:
    """The pieces of a worker that holds whole parameters, updated where they are."""
    fused = {p: group.get("fused") or group.get("capturable") for group in optimizer.param_groups for p in group["params"]}
    return [
        Piece(name, 0, p.numel(), p, 0, optimizer.state[p], shared=True, scalars_on=p.device if fused[p] else "cpu")
        for name, p in named
        if p in fused
    ]


def snapshot(pieces: Iterable[Piece], rank: int = 0, world_size: int = 1) -> list[Fragment]:
    """Copies in host memory of what this worker holds; of what all hold, its share.

    >>> weight = torch.arange(4.0)
    >>> [f.values.tolist() for f in snapshot([Piece("w", 0, 4, weight, 0, {}, shared=True)], rank=1, world_size=2)]
    [[2.0, 3.0]]
    """
    found = []
    for piece in pieces:
        first, last = (0, piece.count)
        if piece.shared:
            first, last = piece.count * rank // world_size, piece.count * (rank + 1) // world_size
        for kind, tensor in {WEIGHT: piece.master, **piece.state}.items():
            if _is_number(tensor):
                found.append(Fragment(piece.name, kind, 0, torch.tensor([float(tensor)]), scalar=True))
            elif isinstance(tensor, Tensor) and last > first:
                assert tensor.numel() == piece.master.numel(), f"{piece.name}: {kind} has another size than its weight"
                values = piece.window(tensor)[first:last].to("cpu", torch.float32, copy=True)
                found.append(Fragment(piece.name, kind, piece.start + first, values))
    return found


@torch.no_grad()
def load(pieces: Iterable[Piece], parts: Parts) -> None:
    """Read into the live tensors what `parts` has for them.

    Raises ValueError for a parameter that is not there whole: the checkpoint is of another model.
    """
    for piece in pieces:
        for kind in parts.kinds(piece.name) or (WEIGHT,):
            if parts.is_scalar(piece.name, kind):
                number = float(parts.read(piece.name, kind, 0, 1))
                piece.state[kind] = int(number) if piece.scalars_on is None else torch.tensor(number, device=piece.scalars_on)
                continue
            target = piece.master if kind == WEIGHT else piece.state.get(kind)
            if target is None:
                target = piece.state[kind] = torch.zeros_like(piece.master, requires_grad=False)
            piece.window(target).copy_(parts.read(piece.name, kind, piece.start, piece.count))


@dataclass(slots=True)
class Held:
    """Fragments in memory, as `Parts`: what a run goes back to without storage."""

    fragments: list[Fragment]
    _found: dict[tuple[str, str], list[Fragment]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for fragment in self.fragments:
            self._found.setdefault((fragment.name, fragment.kind), []).append(fragment)

    def kinds(self, name: str) -> list[str]:
        """See Parts."""
        return [kind for known, kind in self._found if known == name]

    def read(self, name: str, kind: str, start: int, count: int) -> Tensor:
        """See Parts."""
        for fragment in self._found.get((name, kind), ()):
            if fragment.start <= start and start + count <= fragment.start + len(fragment.values):
                return fragment.values[start - fragment.start :][:count]
        raise ValueError(f"{name}: elements {start} to {start + count} of its {kind} are not held")

    def is_scalar(self, name: str, kind: str) -> bool:
        """See Parts."""
        return any(fragment.scalar for fragment in self._found.get((name, kind), ()))


def _is_number(value: Any) -> bool:
    return value.dim() == 0 if isinstance(value, Tensor) else isinstance(value, (int, float))
