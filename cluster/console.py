"""What a person sees while work goes on: messages and progress bars on stderr; stdout is for results.

Promise: a bar on a terminal, one line per ten seconds elsewhere (a job's log), nothing that slows the work.
Price: a redraw at most ten times a second. Source: rich.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["error_line", "progress", "say"]

_LINE_EVERY_S = 10.0


def say(message: str) -> None:
    """One line for the person watching."""
    print(message, file=sys.stderr, flush=True)


def error_line(error: BaseException) -> str:
    """An error of whatever kind, for a log: its type and the first line of what it says.

    >>> error_line(KeyError("a"))
    "KeyError: 'a'"
    """
    return f"{type(error).__name__}: {error}".split("\n")[0]


@contextmanager
def progress(label: str, total: float, unit: str = "") -> Iterator[Callable[..., None]]:
    """Yields `advance(amount=1, note="")`. `total` in `unit`s; the bar shows rate and time left."""
    if sys.stderr.isatty():
        with _bar(label, total) as move:
            yield move
        return
    done, last, start = 0.0, time.monotonic(), time.monotonic()

    def advance(amount: float = 1, note: str = "") -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S:
            last = now
            left_s = (now - start) * max(total - done, 0) / done if done else 0.0
            say(f"{label}: {done:,.0f}/{total:,.0f} {unit}  {note}  about {left_s:.0f} s left")

    yield advance


@contextmanager
def _bar(label: str, total: float) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    name, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    with Progress(
        name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note, console=Console(stderr=True), transient=True
    ) as bars:
        task = bars.add_task(label, total=total, note="")
        yield lambda amount=1, note="": bars.update(task, advance=amount, note=note)
