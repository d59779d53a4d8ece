"""A cluster on this machine whose spot machines are taken away again and again, as in a recorded trace, while clients listen.

Promise: every strike takes the spot machine with the most streams in the middle that no strike of this wave has hit yet, with notice (a
drain, then the end at its deadline) or without (`kill -9` of all of the machine's processes); a fresh machine comes for each. Price: a Ray
node per machine on two cores. The times between strikes are the trace's, compressed; a strike waits until enough streams are there to
be hit. These are the streams that it aims at; what it hit is read from the gateway's journal afterwards (benchmarks/storm_report.py).
"""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from cluster.console import say
from cluster.preemption import drain
from pipelines.drill import Fleet

__all__ = ["FEWEST", "Schedule", "Storm", "Strike", "pauses"]

FEWEST = 4
"""Streams in the middle of generation that a strike must hit."""
AIMED = FEWEST + 1
"""A strike aims at one more: a stream may reach its end in the very moment."""
PATIENCE_S = 240.0
"""How long a strike waits for them, and for the replicas of those before it."""
ATTEMPTS = 3
"""Machines asked for until one starts: Ray gives one 30 s, and on a busy machine that can be too little."""
LOOK_S = 0.1
Live = Mapping[str, str]
"""Streams in the middle of generation: their name -> the Ray node they are on."""


def pauses(trace: Path, count: int, mean_s: float) -> list[float]:
    """Seconds before each of `count` strikes: the times between a trace's removals (ms, add or remove, node), compressed to this mean.

    Removals of one moment are one strike, for a strike takes one machine; a trace that ends begins again.
    """
    with trace.open() as lines:
        times = sorted({int(row[0]) / 1000 for row in csv.reader(lines) if row and row[1] == "remove"})
    if len(times) < 2:
        raise ValueError(f"{trace}: holds fewer than two removals; use one of the bamboo traces")
    gaps = [b - a for a, b in pairwise(times)]
    chosen = [gaps[i % len(gaps)] for i in range(count)]
    return [gap * mean_s * count / sum(chosen) for gap in chosen]


@dataclass(frozen=True, slots=True)
class Schedule:
    """When strikes come and how: the same for our service and for its peer."""

    pauses: tuple[float, ...]
    """Seconds before each strike, from the end of the one before, beyond what replacement takes."""
    notice_s: float
    """Seconds of notice of every other strike, the first one included; the rest come without."""

    def notice(self, number: int) -> float | None:
        """The notice of strike number 0, 1, …"""
        return None if number % 2 else self.notice_s

    def pause(self, number: int) -> float:
        """The pause before it; strikes beyond the schedule come at once."""
        return self.pauses[number] if number < len(self.pauses) else 0.0


@dataclass(slots=True)
class Strike:
    """One machine taken away."""

    victim: str
    node_id: str
    notice_s: float | None
    at_s: float
    """Unix seconds of the notice, or of the end if there was none."""
    aimed: list[str]
    """Streams in the middle of generation on it."""
    gone_s: float = 0.0


@dataclass(slots=True)
class Storm:
    """Strikes so far, of one wave of streams."""

    machines: Fleet
    live: Callable[[], Live]
    ready: Callable[[], bool]
    """Whether enough replicas run for a strike."""
    strikes: list[Strike] = field(default_factory=list)
    hits: Counter[str] = field(default_factory=Counter)
    """Strikes by stream."""

    def strike(self, number: int, notice_s: float | None, over: Callable[[], bool], *, fresh: bool = False) -> bool:
        """Take a machine away, and let a fresh one come; False if there was nothing to hit before `over`.

        `number` is for people; `fresh`: only a machine with a stream that was never hit.
        """
        found = self._victim(over, fresh)
        if found is None:
            return False
        victim, aimed = found
        made = Strike(victim, self.machines.nodes[victim].node_id, notice_s, time.time(), aimed)
        self.strikes.append(made)
        self.hits.update(aimed)
        if notice_s is None:
            self.machines.kill(victim)
            made.gone_s = time.time()
            self._come()
        else:
            drain(made.node_id, "storm", notice_s)
            self._come()
            time.sleep(max(0.0, made.at_s + notice_s - time.time()))  # the deadline itself
            self.machines.kill(victim)
            made.gone_s = time.time()
        how = "killed" if notice_s is None else f"{notice_s:g} s of notice"
        say(f"strike {number + 1}: {victim}, {how}, {len(aimed)} streams on it; {time.time() - made.at_s:.1f} s with the machine that came")
        return True

    def _come(self) -> None:
        """A fresh spot machine."""
        for attempt in range(ATTEMPTS):
            try:
                self.machines.add("spot")
                return
            except Exception as error:  # Ray raises no better class
                if attempt == ATTEMPTS - 1:
                    raise RuntimeError(f"storm: no fresh machine started in {ATTEMPTS} attempts: {error}") from error
                say(f"storm: a fresh machine did not start ({error}); another one is asked for")

    def _replace_lost(self) -> None:
        """A fresh machine for each that has ended by itself: Ray's daemon can die, as a machine can."""
        for name in self.machines.lost():
            say(f"storm: {name} ended by itself; another machine is asked for")
            self.machines.kill(name)
            self._come()

    def _victim(self, over: Callable[[], bool], fresh: bool) -> tuple[str, list[str]] | None:
        """The spot machine with the most streams that were never hit, among those with enough streams, when the replicas are ready."""
        deadline = time.monotonic() + PATIENCE_S
        while not over():
            if time.monotonic() > deadline:
                raise RuntimeError(f"storm: within {PATIENCE_S:g} s no spot machine had {AIMED} streams to hit while the replicas were up")
            self._replace_lost()
            if self.ready():
                spot = {name: streams for name, streams in self._on_spot().items() if len(streams) >= AIMED}
                unhit = {name: sum(not self.hits[stream] for stream in streams) for name, streams in spot.items()}
                if spot and (not fresh or any(unhit.values())):
                    victim = max(spot, key=lambda name: (unhit[name], len(spot[name])))
                    return victim, spot[victim]
            time.sleep(LOOK_S)  # Serve has no event for a replica that runs
        return None

    def _on_spot(self) -> dict[str, list[str]]:
        """Streams in the middle on each living spot machine."""
        on: dict[str, list[str]] = {}
        for stream, node_id in self.live().items():
            on.setdefault(node_id, []).append(stream)
        living = [name for name, life in self.machines.lives.items() if name.startswith("spot") and len(life) == 1]
        return {name: on.get(self.machines.nodes[name].node_id, []) for name in living}
