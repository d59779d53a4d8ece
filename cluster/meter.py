"""What a cluster costs while a job runs on it: the ledger, kept in memory.

Promise: a bill at any moment, from the machines that are and were there since the meter was made. Price: a call to Ray's node table every
`LOOK_S`, and prices once at the start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cluster.ledger import Bill, Joined, Ledger, Tick, observe
from cluster.nodes import machine_of, node_table
from cluster.prices import prices_of

__all__ = ["Meter"]

LOOK_S = 5.0


class Meter:
    """Made when a job begins."""

    def __init__(self, own: Mapping[str, float], look: Callable[[], list[dict[str, Any]]] = node_table) -> None:
        """`own` are dollars an hour for `spot`, `on-demand` or an instance type, instead of AWS's; `look` shows the nodes."""
        self._own, self._look = own, look
        self._ledger = Ledger()
        self._began_s = time.time()
        self._seen_s = 0.0
        self.provenance = ""
        """Where the prices come from."""

    def bill(self, tokens: int) -> Bill:
        """The costs so far, of `tokens` tokens."""
        now_s = time.time()
        if now_s - self._seen_s >= LOOK_S:
            self._seen_s = now_s
            self._observe(now_s)
        return replace(self._ledger.bill(and_then=Tick(now_s)), tokens=tokens)

    def _observe(self, now_s: float) -> None:
        machines = [machine_of(node) for node in self._look()]
        for entry in observe(self._ledger, machines, 0, now_s):
            self._ledger.take(replace(entry, start_s=max(entry.start_s, self._began_s)) if isinstance(entry, Joined) else entry)
        pools = {life.pool for life in self._ledger.lives}
        if not self.provenance and pools:
            self._ledger.book, self.provenance = prices_of(pools, self._own)
