"""Token shards -> batches, and the cursor that says which sequences a step consumes.

Promise: the global order of sequences is a function of (seed, epoch) alone, or in the first epoch the one that the tokens folder
gives (`index.npy`: a curriculum), so any number of workers and any interruption consume the same sequences in the same order;
segments packed into one sequence see neither each other nor each other's losses. Price: shards are memory-mapped, one permutation
per epoch is held (8 bytes a sequence).
Source: the cursor follows nanochat's and datatrove's habit of stating where a loader stands as plain numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.mixture import Mixture, epoch_order

__all__ = ["IGNORED", "Batch", "Cursor", "Sequences", "Source", "pack"]

IGNORED = -100  # the label of a position without a target, as torch's cross-entropy has it


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a run stands in its data: before global step `step`."""

    seed: int
    global_batch: int
    num_sequences: int
    step: int = 0
    index: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    """The sequences in the order of the first epoch, if they have one of their own; later epochs are drawn from the seed."""
    mixture: Mixture | None = field(default=None, compare=False, repr=False)
    """Where the sequences come from several sources: the proportions, and each source's own order."""

    def __post_init__(self) -> None:
        assert self.global_batch > 0
        assert self.num_sequences > 0
        assert self.step >= 0
        assert self.index is None or len(self.index) == self.num_sequences

    def indices(self) -> NDArray[np.int64]:
        """The sequences of this step's global batch, in order; a batch may straddle two epochs."""
        start = self.step * self.global_batch
        places = np.arange(start, start + self.global_batch)
        if self.mixture is not None:
            return self.mixture.at(places, self.seed)
        epochs, offsets = np.divmod(places, self.num_sequences)
        return np.concatenate([self._epoch(int(e))[offsets[epochs == e]] for e in np.unique(epochs)])

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch == 0 and self.index is not None:
            return self.index
        return epoch_order(self.seed, epoch, self.num_sequences)

    def share(self, rank: int, world_size: int) -> NDArray[np.int64]:
        """The contiguous part of `indices()` that worker `rank` of `world_size` takes; all parts are equally long."""
        assert self.global_batch % world_size == 0, f"{self.global_batch} sequences for {world_size} workers"
        size = self.global_batch // world_size
        return self.indices()[rank * size : (rank + 1) * size]

    def next(self) -> Cursor:
        """The cursor one step on."""
        return replace(self, step=self.step + 1)


@dataclass(frozen=True, slots=True)
class Batch:
    """B packed sequences of L tokens. `position_ids` restart at each segment: transformers derives from them the
    block-diagonal causal mask (each attention kind its own), so no [L × L] mask is stored here."""

    input_ids: Tensor
    """[B, L] int64."""
    labels: Tensor
    """[B, L] int64, shifted: the next token of the same segment, or IGNORED."""
    position_ids: Tensor
    """[B, L] int64, from 0 in each segment; 0 at padding."""
    reference: Tensor | None = None
    """[B] float32, where preferences are learnt: Σ log p of each sequence's labels under the model before tuning."""

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(*(tensor.to(device) for tensor in self.tensors))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What an objective's forward takes, in its order."""
        tensors = (self.input_ids, self.labels, self.position_ids)
        return tensors if self.reference is None else (*tensors, self.reference)

    @property
    def num_labels(self) -> int:
        return int((self.labels != IGNORED).sum())


class Source(Protocol):
    """Sequences that a loop can train on."""

    index: NDArray[np.int64] | None
    """The order in which the first epoch takes them; None: one drawn from the seed."""
    mixture: Mixture | None
    """The proportions in which they are taken from several sources; None: there is one source."""

    def __len__(self) -> int: ...

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The sequences at `indices`, as one batch."""

    def num_labels(self, indices: NDArray[np.int64]) -> int:
        """Targets in those sequences, counted without building the batch."""


class Sequences:
    """Packed sequences in shards of arrays [n, L]: tokens, segments (0 padding, 1.. the segment) and, where only part of the
    tokens are targets, a boolean `supervised` (whether the token itself is to be predicted)."""

    def __init__(
        self,
        tokens: Sequence[NDArray],
        segments: Sequence[NDArray],
        supervised: Sequence[NDArray] | None = None,
        index: NDArray[np.int64] | None = None,
    ) -> None:
        assert tokens
        assert len(tokens) == len(segments)
        self.index = index
        self.mixture: Mixture | None = None
        self._tokens, self._segments, self._supervised = list(tokens), list(segments), None if supervised is None else list(supervised)
        self._starts = np.cumsum([0, *(len(shard) for shard in tokens)])

    @classmethod
    def open(cls, folder: Path) -> Sequences:
        """Memory-map the shards of a tokens folder (or of tune's packed pairs).

        Raises ValueError when there are none, and when a shard's arrays, or the shards and the index, do not fit together.
        """
        found = sorted((folder / "shards").glob("*.tokens.npy"))
        if not found:
            raise ValueError(f"{folder}: no shards/*.tokens.npy; `sterna tokenize` makes them")
        tokens = [np.load(path, mmap_mode="r") for path in found]
        segments = [np.load(_beside(path, "segments"), mmap_mode="r") for path in found]
        for path, left, right in zip(found, tokens, segments, strict=True):
            if left.shape != right.shape or left.ndim != 2 or left.shape[1] != tokens[0].shape[1]:
                raise ValueError(f"{path}: tokens {left.shape} and segments {right.shape} do not fit; run `sterna tokenize` again")
        masks = [_beside(path, "supervised") for path in found]
        supervised = [np.load(p, mmap_mode="r") for p in masks] if masks[0].exists() else None
        return cls(tokens, segments, supervised, _open_index(folder / "index.npy", sum(map(len, tokens))))

    @classmethod
    def mixed(cls, sources: Sequence[Sequences], weights: Sequence[float]) -> Sequences:
        """Several sources as one, taken from in proportion to `weights`, each in its own order.

        Raises ValueError when their sequences are not equally long, or the weights cannot be kept.
        """
        if len({source.sequence_length for source in sources}) > 1:
            raise ValueError(f"tokens: sequences of {sorted({s.sequence_length for s in sources})} tokens; tokenize to one length")
        masks = [source._supervised for source in sources]
        assert len({mask is None for mask in masks}) == 1
        made = cls(
            [shard for source in sources for shard in source._tokens],
            [shard for source in sources for shard in source._segments],
            None if masks[0] is None else [shard for mask in masks if mask is not None for shard in mask],
        )
        made.mixture = Mixture(tuple(map(len, sources)), tuple(weights), tuple(source.index for source in sources))
        return made

    def save(self, folder: Path) -> None:
        """Write the shards where `open` finds them."""
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        for number, (tokens, segments) in enumerate(zip(self._tokens, self._segments, strict=True)):
            stem = folder / "shards" / f"{number:05}"
            np.save(f"{stem}.tokens.npy", tokens)
            np.save(f"{stem}.segments.npy", segments)
            if self._supervised is not None:
                np.save(f"{stem}.supervised.npy", self._supervised[number])
        if self.index is not None:
            np.save(folder / "index.npy", self.index)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def sequence_length(self) -> int:
        """Tokens per sequence, padding included."""
        return int(self._tokens[0].shape[1])

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The sequences at `indices` as [B, L] tensors."""
        tokens, segments, targets = self._rows(indices)
        labels = np.full(tokens.shape, IGNORED, dtype=np.int64)
        labels[:, :-1] = np.where(targets, tokens[:, 1:], IGNORED)
        return Batch(torch.from_numpy(tokens), torch.from_numpy(labels), torch.from_numpy(_positions(segments)))

    def num_labels(self, indices: NDArray[np.int64]) -> int:
        """Targets in the sequences at `indices`."""
        return int(self._rows(indices)[2].sum())

    def num_tokens(self) -> int:
        """Tokens that are not padding, in all sequences."""
        return int(sum(np.count_nonzero(shard) for shard in self._segments))

    def _rows(self, indices: NDArray[np.int64]) -> tuple[NDArray, NDArray, NDArray]:
        """(tokens [B, L], segments [B, L], whether position i has token i+1 as its target [B, L-1])."""
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        places = list(zip(shards, indices - self._starts[shards], strict=True))
        tokens = np.stack([self._tokens[s][i] for s, i in places]).astype(np.int64)
        segments = np.stack([self._segments[s][i] for s, i in places]).astype(np.int64)
        targets = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != 0)
        if self._supervised is not None:
            targets &= np.stack([self._supervised[s][i] for s, i in places])[:, 1:]
        return tokens, segments, targets


def pack(documents: Sequence[Sequence[int]], supervised: Sequence[Sequence[bool]], length: int, padding: int) -> Sequences:
    """Best-fit decreasing packing of whole documents, each at most `length` tokens, into sequences of `length`.

    >>> packed = pack([[1, 2, 3], [4, 5]], [[False, True, True], [False, True]], length=6, padding=0)
    >>> len(packed), packed.batch(np.array([0])).labels.tolist()
    (1, [[2, 3, -100, 5, -100, -100]])
    """
    assert documents
    assert all(0 < len(document) <= length for document in documents)
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    for index in sorted(range(len(documents)), key=lambda i: (-len(documents[i]), i)):
        size = len(documents[index])
        room = next((room for room in range(size, length) if by_room.get(room)), None)
        target = len(bins) if room is None else by_room[room].pop()
        if room is None:
            bins.append([])
        bins[target].append(index)
        by_room.setdefault((length if room is None else room) - size, []).append(target)
    tokens = np.full((len(bins), length), padding, dtype=np.uint32)
    segments = np.zeros((len(bins), length), dtype=np.uint16)
    masks = np.zeros((len(bins), length), dtype=bool)
    for row, members in enumerate(bins):
        start = 0
        for number, index in enumerate(members, start=1):
            end = start + len(documents[index])
            tokens[row, start:end], segments[row, start:end], masks[row, start:end] = documents[index], number, supervised[index]
            start = end
    return Sequences([tokens], [segments], [masks])


def _positions(segments: NDArray[np.int64]) -> NDArray[np.int64]:
    """Distance of each position to the start of its segment; 0 at padding."""
    places = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
    starts = np.zeros(segments.shape, dtype=np.int64)
    starts[:, 1:] = np.where(segments[:, 1:] != segments[:, :-1], places[:, 1:], 0)
    return np.where(segments == 0, 0, places - np.maximum.accumulate(starts, axis=1))


def _open_index(path: Path, num_sequences: int) -> NDArray[np.int64] | None:
    """The order that a tokens folder gives to its sequences, if it gives one."""
    if not path.exists():
        return None
    index = np.load(path, mmap_mode="r")
    if not np.array_equal(np.sort(index), np.arange(num_sequences)):
        raise ValueError(f"{path}: is no order of the {num_sequences:,} sequences beside it; run `sterna tokenize` again")
    return index


def _beside(tokens: Path, kind: str) -> Path:
    return tokens.with_name(tokens.name.replace(".tokens.npy", f".{kind}.npy"))
