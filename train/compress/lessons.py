"""What a model is recovered on: the original's own completions, with the original's likeliest tokens at each place.

Promise: a `Source` for the training loop; its targets are the completions' tokens alone, and the loss is the KL that candidates are judged
by. Price: one completion to a sequence, padded to the longest of the batch; 8 bytes per kept token and place on disk (4 KB a place
at 512), memory-mapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.compress.divergence import Reference
from train.corpus import Batch, Sequences
from train.tuning.preferences import trimmed

__all__ = ["Lesson", "Lessons"]


@dataclass(frozen=True, slots=True)
class Lesson(Batch):
    """A batch that brings the original's word along."""

    top_ids: Tensor | None = None
    """[places, k] int64: at every labelled place of the batch, in flat order, the original's likeliest tokens."""
    top_logprobs: Tensor | None = None
    """[places, k] float32."""

    def to(self, device: torch.device) -> Lesson:
        """See Batch."""
        input_ids, labels, position_ids, top_ids, top_logprobs = (tensor.to(device) for tensor in self.tensors)
        return Lesson(input_ids, labels, position_ids, None, top_ids, top_logprobs)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What DistilLoss takes."""
        assert self.top_ids is not None
        assert self.top_logprobs is not None
        return (self.input_ids, self.labels, self.position_ids, self.top_ids, self.top_logprobs)


@dataclass(frozen=True, slots=True)
class Lessons:
    """A `Source`: element i is completion i."""

    rows: Sequences
    starts: NDArray[np.int64]
    """[n + 1]: where each completion's places begin among all."""
    top_ids: NDArray[np.int32]
    """[places, k]."""
    top_logprobs: NDArray[np.float32]
    """[places, k]."""
    index: None = None
    mixture: None = None

    @classmethod
    def of(cls, reference: Reference) -> Lessons:
        """From what the original said of its own completions."""
        pairs = list(zip(reference.prompts, reference.completions, strict=True))
        shape = (len(pairs), max(len(prompt) + len(completion) for prompt, completion in pairs))
        tokens, segments, targets = np.zeros(shape, np.uint32), np.zeros(shape, np.uint16), np.zeros(shape, bool)
        for row, (prompt, completion) in enumerate(pairs):
            end = len(prompt) + len(completion)
            tokens[row, :end], segments[row, :end], targets[row, len(prompt) : end] = [*prompt, *completion], 1, True
        starts = np.cumsum([0, *map(len, reference.completions)])
        ids, logprobs = np.concatenate(reference.top_ids), np.concatenate(reference.top_logprobs)
        return cls(Sequences([tokens], [segments], [targets]), starts, ids.astype(np.int32), logprobs.astype(np.float32))

    @classmethod
    def open(cls, folder: Path) -> Lessons:
        """What `save` wrote."""
        ids, logprobs = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("top_ids", "top_logprobs"))
        return cls(Sequences.open(folder), np.load(folder / "starts.npy"), ids, logprobs)

    def save(self, folder: Path) -> None:
        """Write into `folder`."""
        self.rows.save(folder)
        for name in ("starts", "top_ids", "top_logprobs"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sequence_length(self) -> int:
        return self.rows.sequence_length

    def batch(self, indices: NDArray[np.int64]) -> Lesson:
        """The completions at `indices`."""
        batch = trimmed(self.rows.batch(indices))
        spans = [slice(self.starts[i], self.starts[i + 1]) for i in indices]
        ids, logprobs = (np.concatenate([array[span] for span in spans]) for array in (self.top_ids, self.top_logprobs))
        tensors = torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(logprobs)
        return Lesson(batch.input_ids, batch.labels, batch.position_ids, None, *tensors)

    def num_labels(self, indices: NDArray[np.int64]) -> int:
        """Places in those completions."""
        return int((self.starts[1:] - self.starts[:-1])[indices].sum())
