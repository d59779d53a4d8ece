"""The ledger's file: entries appended a line at a time, by one keeper at once.

Promise: what was appended is on the disk when `append` returns, and what could not be written (the disk is full) is neither there nor in
memory; a keeper that died in the middle of a line leaves a file that the next one goes on with; two keepers of one file cannot be.
Price: one fsync per append (a minute apart, and when machines come or go).
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from cluster.ledger import Bill, Entry, Ledger, entry_line, read_entries
from cluster.settings import settings

__all__ = ["LedgerConfig", "LedgerFile", "Statement", "ledger", "open_ledger"]


class LedgerFile:
    """A ledger that is kept in a file, or, without a path, in memory alone. `ledger` holds what it says."""

    def __init__(self, path: str = "") -> None:
        """ValueError for a file that cannot be kept: another keeper has it, it is no ledger, its folder cannot be written."""
        self.ledger = Ledger()
        self.closed = False
        """Whether it has been given up."""
        self._file = _opened(Path(path).expanduser()) if path else None
        if self._file is not None:
            try:
                text = _text(self._file, path)
                self.ledger = Ledger.of(read_entries(text, where=path))
            except ValueError:
                self._file.close()
                raise
            self._file.truncate(len(text[: text.rfind("\n") + 1].encode()))  # the line that was being written

    def append(self, entries: Sequence[Entry]) -> None:
        """Put entries on the disk and into the ledger. OSError when they cannot be written: then they are in neither."""
        if self._file is not None and entries:
            _write(self._file, "".join(map(entry_line, entries)).encode())
        self.ledger.take_all(entries)

    def close(self) -> None:
        """Give the file up for another keeper."""
        self.closed = True
        if self._file is not None:
            self._file.close()


def _text(file: FileIO, path: str) -> str:
    try:
        return file.read().decode()
    except UnicodeDecodeError:
        raise ValueError(f"ledger: {path}: is not text; is it a file that `sterna serve` wrote?") from None


def _write(file: FileIO, data: bytes) -> None:
    """All of it to the disk, or nothing."""
    size = os.fstat(file.fileno()).st_size
    try:
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())
    except OSError:
        file.truncate(size)
        raise


def _opened(path: Path) -> FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(path, "a+")  # without a buffer: nothing is written but what `_write` writes
    except OSError as error:
        raise ValueError(f"ledger: {path}: cannot be written ({error.strerror})") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(f"ledger: {path}: another service keeps it; give each its own file") from None
    file.seek(0)
    return file


@settings
class LedgerConfig:
    """`sterna cluster ledger FILE`: what a service cost, by market, and what the same machines would have cost on demand."""

    path: str
    """The file that the service keeps (`ledger` in its settings)."""
    hours: float = 0.0
    """Only the last so many hours of it; 0 is all."""

    def __post_init__(self) -> None:
        if self.hours < 0:
            raise ValueError(f"hours: is {self.hours}; must not be negative")


def open_ledger(path: str) -> Ledger:
    """The ledger in a file, which may be kept meanwhile. ValueError for no such file, or one that is no ledger."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"ledger: {path}: cannot be read ({getattr(error, 'strerror', 'not text')})") from None
    return Ledger.of(read_entries(text, where=path))


@dataclass(frozen=True, slots=True)
class Statement:
    """A bill as a person reads it."""

    bill: Bill

    def summary(self) -> dict[str, Any]:
        """The figures alone."""
        return self.bill.summary()

    def __str__(self) -> str:
        figures = self.summary()
        head = f"{'market':<10} {'type':<14} {'machines':>8} {'hours':>10} {'dollars':>10} {'on demand':>10}"
        rows = [
            f"{row['market']:<10} {row['instance_type']:<14} {row['machines']:>8} {row['hours']:>10,.2f} "
            f"{_money(row['dollars']):>10} {_money(row['on_demand_dollars']):>10}"
            for row in figures["by"]
        ]
        total = f"{'all':<25} {figures['machines']:>8} {figures['hours']:>10,.2f} "
        total += f"{_money(figures['dollars']):>10} {_money(figures['on_demand_dollars']):>10}"
        return "\n".join([head, *rows, total, "", _verdict(figures)])


def _money(dollars: float | None) -> str:
    return "no price" if dollars is None else f"${dollars:,.{2 if dollars >= 10 else 4}f}"


def _verdict(figures: dict[str, Any]) -> str:
    words = [f"{figures['tokens']:,} tokens served"]
    if (rate := figures["dollars_per_million_tokens"]) is not None:
        words.append(f"${rate:,.3f} per million")
        words.append(f"${figures['on_demand_dollars_per_million_tokens']:,.3f} had all been on demand")
    if figures["on_demand_dollars"]:
        words.append(f"{figures['dollars'] / figures['on_demand_dollars']:.2f} of the all-on-demand cost")
    if figures["unpriced_hours"]:
        words.append(f"{figures['unpriced_hours']:,.2f} machine-hours have no known price and are in no sum")
    return "; ".join(words)


def ledger(config: LedgerConfig) -> Statement:
    """What the service that keeps `config.path` cost. ValueError for a file that is no ledger."""
    kept = open_ledger(config.path)
    since_s = (kept.seen_s or 0.0) - config.hours * 3600 if config.hours else -math.inf
    return Statement(kept.bill(since_s))
