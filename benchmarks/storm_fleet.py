"""A cluster on this machine whose spot machines are taken away again and again, as in a recorded trace, while clients listen.

Promise: every strike takes the spot machine with the most streams in the middle that no strike has hit yet, with notice (a drain, then the
end at its deadline) or without (`kill -9` of all of the machine's processes); a fresh machine comes for each. Price: a Ray node per
machine on two cores. The times between strikes are the trace's, compressed; a strike waits until enough streams are there to be hit.
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

__all__ = ["Storm", "Strike", "pauses"]

FEWEST = 4
"""Streams in the middle of generation that a strike must hit."""
PATIENCE_S = 240.0
"""How long a strike waits for them, and for the replicas of those before it."""
_LOOK_S = 0.1
Live = Mapping[str, str]
"""Streams in the middle of generation: their name -> the Ray node they are on."""


def pauses(trace: Path, count: int, mean_s: float) -> list[float]:
    """Seconds before each of `count` strikes: the times between a trace's removals (ms, add or remove, node), compressed to this mean.

    Removals of one moment are one strike, for a strike takes one machine.
    """
    with trace.open() as lines:
        times = sorted({int(row[0]) / 1000 for row in csv.reader(lines) if row and row[1] == "remove"})
    if len(times) < 2:
        raise ValueError(f"{trace}: holds fewer than two removals; use one of the bamboo traces")
    gaps = [b - a for a, b in pairwise(times)]
    chosen = [gaps[i % len(gaps)] for i in range(count)]
    return [gap * mean_s * count / sum(chosen) for gap in chosen]


@dataclass(slots=True)
class Strike:
    """One machine taken away."""

    victim: str
    node_id: str
    notice_s: float | None
    at_s: float
    """Unix seconds of the notice, or of the end if there was none."""
    hit: list[str]
    """Streams in the middle of generation on it."""
    gone_s: float = 0.0


@dataclass(slots=True)
class Storm:
    """Strikes so far."""

    machines: Fleet
    live: Callable[[], Live]
    all_up: Callable[[], bool]
    """Whether every replica runs that should."""
    strikes: list[Strike] = field(default_factory=list)
    hits: Counter[str] = field(default_factory=Counter)
    """Strikes by stream."""

    def strike(self, notice_s: float | None, over: Callable[[], bool]) -> bool:
        """Take a machine away, and let a fresh one come; False if there was nothing to hit before `over`."""
        found = self._victim(over)
        if found is None:
            return False
        victim, hit = found
        node_id = self.machines.nodes[victim].node_id
        made = Strike(victim, node_id, notice_s, time.time(), hit)
        self.strikes.append(made)
        self.hits.update(hit)
        if notice_s is None:
            self.machines.kill(victim)
            self.machines.add("spot")
        else:
            drain(node_id, "storm", notice_s)
            self.machines.add("spot")
            time.sleep(max(0.0, made.at_s + notice_s - time.time()))  # the deadline itself
            self.machines.kill(victim)
        made.gone_s = time.time()
        how = "killed" if notice_s is None else f"{notice_s:g} s of notice"
        say(f"strike {len(self.strikes)}: {victim}, {how}, {len(hit)} streams hit; {sum(self.hits.values())} hits so far")
        return True

    def _victim(self, over: Callable[[], bool]) -> tuple[str, list[str]] | None:
        """The spot machine with the most streams that were never hit, among those with enough streams, when all replicas are up."""
        deadline = time.monotonic() + PATIENCE_S
        while not over():
            if time.monotonic() > deadline:
                raise RuntimeError(f"storm: within {PATIENCE_S:g} s no spot machine had {FEWEST} streams to hit while all replicas were up")
            if self.all_up():
                on: dict[str, list[str]] = {}
                for stream, node_id in self.live().items():
                    on.setdefault(node_id, []).append(stream)
                spot = {
                    name: on[node.node_id]
                    for name, node in self.machines.nodes.items()
                    if name.startswith("spot") and len(self.machines.lives[name]) == 1 and len(on.get(node.node_id, ())) >= FEWEST
                }
                if spot:
                    victim = max(spot, key=lambda name: (sum(not self.hits[s] for s in spot[name]), len(spot[name])))
                    return victim, spot[victim]
            time.sleep(_LOOK_S)  # Serve has no event for a replica that runs
        return None
