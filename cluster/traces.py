"""Recorded traces: how many spot machines could be had in a zone over time, and when requests came and how long they were.

Promise: both spot formats become one shape, a step function of time per zone; a file that is not what it should be is one line that
names the file, the place in it and what was expected. Price: numpy arrays, milliseconds a file.
Sources: skypilot-org/spot-traces (`*.json`: `metadata.gap_seconds` and `data`, instances that could be had at each probe),
uclasystem/bamboo (`*.csv`: millisecond, add or remove, node), Azure/AzurePublicDataset (`TIMESTAMP,ContextTokens,GeneratedTokens`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["LoadTrace", "SpotTrace", "read_load", "read_spot", "steady_load"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SpotTrace:
    """Spot machines that could be had in one zone: `counts[i]` from `times_s[i]` to the next, the last one until `end_s`."""

    zone: str
    times_s: Floats
    counts: Floats
    end_s: float

    @property
    def most(self) -> float:
        """The most that could ever be had: what the recorder asked for, so there may have been more."""
        return float(self.counts.max())

    def at(self, seconds: Floats) -> Floats:
        """Machines that could be had at each of these times; after its end the trace begins again."""
        return np.asarray(self.counts[np.searchsorted(self.times_s, np.asarray(seconds) % self.end_s, side="right") - 1])


@dataclass(frozen=True, slots=True)
class LoadTrace:
    """Requests: arrival in seconds from the first, prompt tokens, output tokens."""

    arrivals_s: Floats
    prompt_tokens: Floats
    output_tokens: Floats

    @property
    def end_s(self) -> float:
        """Length of the trace: up to the last arrival, and the mean gap after it."""
        return float(self.arrivals_s[-1] * len(self.arrivals_s) / (len(self.arrivals_s) - 1))


def read_spot(path: str | Path) -> SpotTrace:
    """A spot trace in either format, told apart by its content; the file's name is the zone's."""
    file, text = Path(path), _text(path)
    zone = file.stem.removeprefix("sky-")
    trace = _availability(file, zone, text) if text.lstrip().startswith("{") else _events(file, zone, text)
    if not trace.most > 0:
        raise ValueError(f"{file}: never offers a machine; leave this zone out")
    return trace


def _availability(file: Path, zone: str, text: str) -> SpotTrace:
    """`{"metadata": {"gap_seconds": 300}, "data": [4, 4, 3, …]}`."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not valid JSON (line {error.lineno}: {error.msg})") from None
    metadata, data = document.get("metadata"), document.get("data")
    gap_s = metadata.get("gap_seconds") if isinstance(metadata, dict) else None
    if not isinstance(gap_s, int | float) or isinstance(gap_s, bool) or not 0 < gap_s < 1e7:
        raise ValueError(f"{file}: metadata.gap_seconds is {gap_s!r}; expected the seconds between two entries of data")
    if not isinstance(data, list) or not data:
        raise ValueError(f"{file}: has no data; expected a list of machine counts")
    for index, value in enumerate(data):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e7:
            raise ValueError(f"{file}: data[{index}] is {value!r}; expected a number of machines, 0 or more")
    return _steps(zone, np.arange(len(data)) * float(gap_s), np.asarray(data, dtype=np.float64), len(data) * float(gap_s))


def _events(file: Path, zone: str, text: str) -> SpotTrace:
    """Lines `millisecond,add|remove,node`: the machines that a group kept at a fixed size really had."""
    nodes: set[str] = set()
    times, counts = [0.0], [0.0]
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        if not row or not "".join(row).strip():
            continue
        seconds, event, node = _event(f"{file}: line {number}", row, times[-1])
        (nodes.add if event == "add" else nodes.discard)(node)
        if seconds == times[-1]:
            counts[-1] = float(len(nodes))
        else:
            times.append(seconds)
            counts.append(float(len(nodes)))
    if len(times) < 2:
        raise ValueError(f"{file}: neither JSON with metadata and data, nor lines such as 60000,add,node1 over time")
    begin = next((i for i, count in enumerate(counts) if count), 0)  # the group's own start is no news about the market
    shifted = np.asarray(times[begin:], dtype=np.float64) - times[begin]
    end_s = float(shifted[-1] + max(1.0, shifted[-1] / max(1, len(shifted) - 1)))
    return _steps(zone, shifted, np.asarray(counts[begin:], dtype=np.float64), end_s)


def _event(where: str, row: Sequence[str], not_before_s: float) -> tuple[float, str, str]:
    if len(row) != 3 or row[1].strip() not in ("add", "remove"):
        raise ValueError(f"{where}: {','.join(row)[:60]!r}; expected millisecond,add,node or millisecond,remove,node")
    seconds = _number(where, row[0], "milliseconds") / 1000
    if seconds < not_before_s:
        raise ValueError(f"{where}: time goes back from {not_before_s:g} s to {seconds:g} s; expected the events in order")
    return seconds, row[1].strip(), row[2].strip()


def _steps(zone: str, times_s: npt.NDArray[np.floating], counts: Floats, end_s: float) -> SpotTrace:
    """Only the times at which something changes."""
    changes = np.concatenate([[True], counts[1:] != counts[:-1]])
    return SpotTrace(zone, np.asarray(times_s[changes], dtype=np.float64), counts[changes], end_s)


def read_load(path: str | Path) -> LoadTrace:
    """Requests in the Azure format."""
    file, rows = Path(path), list(csv.reader(_text(path).splitlines()))
    wanted = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
    if not rows or [name.strip() for name in rows[0]] != wanted:
        raise ValueError(f"{file}: its first line is {','.join(rows[0]) if rows else ''!r}; expected {','.join(wanted)}")
    body = [(number, row) for number, row in enumerate(rows[1:], start=2) if row]
    if len(body) < 2:
        raise ValueError(f"{file}: has {len(body)} requests; expected at least two")
    arrivals = np.asarray([_moment(f"{file}: line {number}", row) for number, row in body])
    prompts, outputs = (_column(file, body, index) for index in (1, 2))
    order = np.argsort(arrivals, kind="stable")
    if not arrivals[order[-1]] > arrivals[order[0]]:
        raise ValueError(f"{file}: all requests come at the same moment; expected arrivals over time")
    return LoadTrace(arrivals[order] - arrivals[order[0]], prompts[order], outputs[order])


def steady_load(prompt_tokens: float = 1000.0, output_tokens: float = 200.0) -> LoadTrace:
    """Ten minutes of a request a second, all alike: for when nothing else was recorded."""
    count = 600
    return LoadTrace(np.arange(count, dtype=np.float64), np.full(count, prompt_tokens), np.full(count, output_tokens))


def _moment(where: str, row: Sequence[str]) -> float:
    if len(row) != 3:
        raise ValueError(f"{where}: has {len(row)} fields; expected 3")
    try:
        return datetime.fromisoformat(row[0].strip()[:26]).timestamp()  # Azure writes 7 digits of the second; ISO has 6
    except ValueError:
        raise ValueError(f"{where}: {row[0]!r} is no time; expected such as 2023-11-16 18:15:46.680590") from None


def _column(file: Path, body: Iterable[tuple[int, Sequence[str]]], index: int) -> Floats:
    return np.asarray([_number(f"{file}: line {number}", row[index], "a number of tokens") for number, row in body])


def _number(where: str, text: str, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e15:
        raise ValueError(f"{where}: {text!r}; expected {expected}, 0 or more")
    return value


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected a trace (docs/spot.md says where to get some)") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(f"{path}: cannot be read ({reason})") from None
