"""What every stepper is besides its step: a worker among others, or alone, that can go back to weights it remembers.

Promise: sums and waits over the process group that is there, none for a lone process; `remember` copies what a checkpoint would hold into
host memory, `go_back` puts it back. Price: one such copy, each worker its share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.distributed

from train.elastic.pieces import Held, Piece, load, snapshot

__all__ = ["Member"]


class Member(ABC):
    """A worker's place in the process group, and its last good state. See train.loop.Stepper."""

    def __init__(self, device: torch.device, *, alone: bool = False) -> None:
        self._device, self._alone = device, alone
        self.rank, self.world_size = (0, 1) if alone else (torch.distributed.get_rank(), torch.distributed.get_world_size())
        self._good: Held | None = None

    @abstractmethod
    def pieces(self) -> list[Piece]:
        """What a checkpoint holds of this worker (train/elastic/pieces.py); each stepper has its own."""

    def total(self, value: float) -> float:
        """See Stepper."""
        if self._alone:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(tensor)
        return float(tensor)

    def barrier(self) -> None:
        """Wait for every worker."""
        if not self._alone:
            torch.distributed.barrier()

    def remember(self) -> None:
        """See Stepper."""
        self._good = None  # one copy at a time
        self._good = Held(snapshot(self.pieces()))

    def go_back(self) -> None:
        """See Stepper."""
        assert self._good is not None
        pieces = self.pieces()
        self._forget(pieces)
        load(pieces, self._good)
        self.publish()

    def publish(self) -> None:  # noqa: B027  most steppers need nothing here
        """Take over what was loaded into the pieces; all workers must call it. By default the model computes with them already."""

    def _forget(self, pieces: Sequence[Piece]) -> None:  # noqa: B027  nor here
        """Clear what the remembered state may lack; by default it lacks nothing."""
