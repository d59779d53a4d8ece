"""How much memory a process and all that descends from it hold: sampled while work goes on.

Promise: proportional set size, so that shared pages (forked interpreters, the object store) count once.
Price: one read of `smaps_rollup` per process and second, on a thread. Source: psutil.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

__all__ = ["Footprint", "measured"]


class Footprint:
    """The peak seen so far, in bytes."""

    def __init__(self) -> None:
        self.peak_bytes = 0

    def sample(self) -> int:
        """Bytes held now by this process and its descendants; keeps the peak."""
        me = psutil.Process()
        now = sum(_bytes_of(process) for process in [me, *me.children(recursive=True)])
        self.peak_bytes = max(self.peak_bytes, now)
        return now


def _bytes_of(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.uss))
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return 0  # it ended between the listing and the look


@contextmanager
def measured(every_s: float = 1.0) -> Iterator[Footprint]:
    """Sample for the length of the block."""
    footprint, done = Footprint(), threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            footprint.sample()

    thread = threading.Thread(target=watch, name="footprint", daemon=True)
    thread.start()
    try:
        yield footprint
    finally:
        done.set()
        thread.join()
        footprint.sample()
