"""LoRA adapters side by side in one batch: each row of a step gets its own request's low-rank updates.

Promise: a row's result is that of the model with this adapter alone; rows without one are not touched, and a step without any costs
nothing. Price per adapter in the step and adapted product: two thin matrix products over its rows; beside the model, the adapters'
own weights. Projections that are fused in the model share one product with A; B's run each on its part.
Source: S-LoRA and Punica (arXiv 2311.03285, 2310.18547) for the idea of batching over adapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from serve.engine.linear import Linear, Stored, fuse
from serve.engine.lora import Place, Update, read_adapter

__all__ = ["AdapterSet", "StepAdapters"]

Rows = slice | Tensor


class AdapterSet:
    """The loaded adapters of one model, by name."""

    def __init__(
        self,
        places: dict[str, Place] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (immutable)
        *,
        native: bool = False,
    ) -> None:
        """`places`: the modules that adapters can change (`lora.places`); none for a model that takes no adapters."""
        self._places, self._dtype, self._device, self._native = places, dtype, device, native
        self._loaded: dict[str, _Adapter] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that a request can name, in order of loading."""
        return tuple(self._loaded)

    def load(self, name: str, folder: str | Path) -> None:
        """Read a peft folder. ValueError for a name in use and for what cannot run beside others."""
        if not name or name in self._loaded:
            raise ValueError(f"adapter: {name!r} is {'loaded already' if name else 'no name'}; choose another, or unload the old one")
        if not self._places:
            raise ValueError(
                "adapter: this model runs through transformers' module, which takes none here; merge the adapter into the model"
            )
        updates, digest = read_adapter(Path(folder), self._places)
        self._loaded[name] = _Adapter(updates, digest, self)

    def unload(self, name: str) -> None:
        """Forget an adapter; the caller sees to it that no live request uses it. ValueError for an unknown name."""
        self.check(name)
        del self._loaded[name]

    def check(self, name: str) -> None:
        """ValueError unless an adapter of this name is loaded."""
        if name not in self._loaded:
            known = ", ".join(self._loaded) or "none"
            raise ValueError(f"adapter: {name!r} is not loaded; loaded: {known}; name one of them, or none for the model as it is")

    def digest(self, name: str) -> str:
        """What the adapter is, whatever its name: part of what a block's KV depends on. Empty for the model as it is."""
        return self._loaded[name].digest.hex() if name else ""

    def step(self, spans: Iterable[tuple[str, int]]) -> StepAdapters | None:
        """The hook for a step whose rows lie span after span, each (adapter name, number of rows); None where nobody has an adapter."""
        ranges: dict[str, list[tuple[int, int]]] = {}
        row = 0
        for name, length in spans:
            if name:
                mine = ranges.setdefault(name, [])
                if mine and mine[-1][1] == row:
                    mine[-1] = (mine[-1][0], row + length)
                else:
                    mine.append((row, row + length))
            row += length
        return StepAdapters([(self._loaded[name], self._rows(mine)) for name, mine in ranges.items()]) if ranges else None

    def _rows(self, ranges: Sequence[tuple[int, int]]) -> Rows:
        if len(ranges) == 1:
            return slice(*ranges[0])
        return torch.cat([torch.arange(first, end, device=self._device) for first, end in ranges])

    def linear(self, weight: Tensor) -> Linear:
        """A matrix on the kernels that the model's own run on."""
        return fuse([Stored(weight.to(self._device, self._dtype).contiguous())], native=self._native)


@dataclass(frozen=True, slots=True)
class StepAdapters:
    """`model.Adapters`: adds each adapter's updates to its rows."""

    rows_of: list[tuple[_Adapter, Rows]]

    def __call__(self, layer: int, product: str, x: Tensor, y: Tensor) -> None:
        """x [T, K], y [T, N], y changed in place."""
        for adapter, rows in self.rows_of:
            update = adapter.products.get((layer, product))
            if update is not None:
                update.add(x, y, rows)


class _Adapter:
    """One adapter's matrices on the model's device."""

    def __init__(self, updates: Sequence[Update], digest: bytes, home: AdapterSet) -> None:
        self.digest = digest
        together: dict[tuple[int, str], list[Update]] = {}
        for update in updates:
            together.setdefault((update.place.layer, update.place.product), []).append(update)
        self.products = {key: _Product(members, home) for key, members in together.items()}


class _Product:
    """The updates of one layer's product: the A's one below the other, each B for its own rows of the output."""

    def __init__(self, updates: Sequence[Update], home: AdapterSet) -> None:
        self._a = home.linear(torch.cat([update.a for update in updates]))
        self._ranks = [len(update.a) for update in updates]
        self._b = [(update.place.first, update.place.first + update.place.num_rows, home.linear(update.b)) for update in updates]

    def add(self, x: Tensor, y: Tensor, rows: Rows) -> None:
        inner = self._a(x[rows])
        for part, (first, end, b) in zip(inner.split(self._ranks, 1), self._b, strict=True):
            y[rows, first:end] += b(part.contiguous()).to(y.dtype)
