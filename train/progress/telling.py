"""What worker 0 says of each step: to the driver's progress line, to metrics.jsonl, to Prometheus.

Promise: one reading, told three ways; the other workers say nothing. Price: well under a millisecond a step, the exporter's and the
key-value store's calls included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from train.progress.log import MetricsLog, ray_gauges
from train.progress.meter import Meter, Reading
from train.state import Record, Skip, State

__all__ = ["Telling", "telling"]


class Telling:
    """The loop's `report` and `undone`; a silent one on every worker but the first."""

    def report(self, record: Record) -> None:
        """A step that counts."""

    def undone(self, skip: Skip) -> None:
        """A roll-back."""


class _Aloud(Telling):
    def __init__(self, meter: Meter, log: MetricsLog, news: Callable[[dict[str, Any]], None], gauges: Callable[[Reading], None]) -> None:
        self._meter, self._log, self._news, self._gauges = meter, log, news, gauges
        self._undone: list[str] = []

    def report(self, record: Record) -> None:
        reading = self._meter.read(record)
        self._log.step(reading)
        self._gauges(reading)
        said = {"step": record.step, "loss": record.loss, "seconds": record.seconds, "note": note(reading), "undone": self._undone}
        self._news({**said, "rate": reading.tokens_per_second})

    def undone(self, skip: Skip) -> None:
        self._log.undone(skip)
        windows = f"windows {skip.first} to {skip.last}" if skip.last > skip.first else f"window {skip.first}"
        self._undone.append(f"{skip.reason}: back to step {skip.step}, past {windows} of the data")


@contextmanager
def telling(run: str, folder: str, state: State, meter: Meter | None, news: Callable[[dict[str, Any]], None]) -> Iterator[Telling]:
    """Tell of a run that goes on from `state` while the block runs; `meter` is None on the workers that say nothing.

    `news` takes the last word for the driver; `undone` in it are all roll-backs so far, a line each.
    """
    if meter is None:
        yield Telling()
        return
    log = MetricsLog(folder, state)
    try:
        yield _Aloud(meter, log, news, ray_gauges(f"{run} {_name(folder)}"))
    finally:
        log.close()


def _name(folder: str) -> str:
    """The output folder's, which tells a run from others of its verb.

    >>> _name("s3://bucket/runs/base.partial/")
    'base'
    """
    return folder.rstrip("/").rpartition("/")[2].removesuffix(".partial")


def note(reading: Reading) -> str:
    """The reading as a progress line has it."""
    parts = [f"loss {reading.loss:.3f}", f"{reading.tokens_per_second:,.0f} tokens/s"]
    if reading.mfu is not None:
        parts.append(f"{reading.mfu:.0%} MFU")
    parts.append(f"{reading.memory_bytes / 1e9:.1f} GB")
    if reading.energy_joules is not None:
        parts.append(f"{reading.energy_joules / 3600:,.1f} Wh")
    return "  ".join(parts)
