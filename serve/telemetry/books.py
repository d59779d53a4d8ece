"""The service's books: which machines it has, what they cost, what was served, what the policies decided. One process keeps them.

Promise: whoever asks gets the machines with their prices, the bill so far and the latest decisions; with `ledger` set, a restart goes on
from the file. Machines count from when the service first sees them to when it stops; the whole cluster counts, head and gateways
included. Prices are its owner's (`node_prices`), else AWS's where machines are AWS's, asked once an hour, else the list's.
Price: one process, one look at Ray's node table and one call per gateway every `LOOK_S`. Gateways tell totals, so an answer that comes
too late is made up for by the next; tokens that a gateway sends between its last answer and its death are not counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray.serve

from cluster.console import error_line
from cluster.ledger import Joined, Left, Life, Tick, observe
from cluster.ledger_file import LedgerFile
from cluster.market import ON_DEMAND, Pool
from cluster.nodes import machine_of, node_rows, node_table
from cluster.price_book import Price, PriceBook, own_prices
from cluster.prices import prices_of
from serve.handles import asked, deployment
from serve.scaling.autoscaling import decisions

__all__ = ["Books", "decision_rows"]

LOOK_S = 5.0
TICK_S = 60.0
"""A tick goes to the file this often, and whenever a machine comes or goes."""
PRICES_S = 3600.0
GATEWAY = "gateway"
"""The deployment whose processes are asked for tokens served."""
_log = logging.getLogger(__name__)


class Books:
    """A Serve deployment of one replica, on the head, where the file is."""

    def __init__(self, ledger: str = "", node_prices: Mapping[str, float] | None = None) -> None:
        """As in serve.config.ServeConfig. ValueError for a ledger that cannot be kept."""
        self._file = LedgerFile(ledger)
        self._known_s = self._file.ledger.seen_s
        """Up to when a keeper before this one has counted; None: there was none."""
        self._heard: dict[str, int] = {}
        """Tokens that each gateway has sent, as far as they are counted."""
        self._own = dict(node_prices or {})
        self._file.append(_news(self._file.ledger.book, own_prices(self._own), time.time()))
        self._priced: tuple[frozenset[Pool], float] = (frozenset(), 0.0)  # for which, and when
        self._provenance = "yours" if self._own else "not asked for yet"
        self._nodes: list[dict[str, Any]] = []
        self._pending = 0
        """Tokens served since the ledger's last entry."""
        self._decisions: list[dict[str, Any]] = []
        self._task = asyncio.create_task(self._keep())

    def report(self) -> dict[str, Any]:
        """Machines, costs and decisions, as the live page shows them."""
        ledger, now = self._file.ledger, time.time()
        machines = []
        for row in self._nodes:
            pool, market = Pool(row["zone"], row["type"]), row["market"]
            price, fixed = ledger.book.at(pool, market, now), ledger.book.at(pool, ON_DEMAND, now)
            machines.append(row | {"price_per_hour": price and price.per_hour, "on_demand_per_hour": fixed and fixed.per_hour})
        bill = ledger.bill(and_then=Tick(now, self._pending)).summary()
        since_s = min((life.start_s for life in ledger.lives), default=now)
        costs = {**bill, "since_s": since_s, "prices": self._provenance, "per_hour": _sum(machines, "price_per_hour")}
        return {
            "machines": machines,
            "costs": costs | {"on_demand_per_hour": _sum(machines, "on_demand_per_hour")},
            "decisions": self._decisions,
        }

    def __del__(self) -> None:
        """Serve stops this process: the machines are no longer this service's. Python calls it again, and when the ledger was refused."""
        file: LedgerFile | None = getattr(self, "_file", None)
        if file is None or file.closed:
            return
        ledger, now = file.ledger, time.time()
        file.append([Tick(now, self._pending), *(Left(name, now) for name in ledger.here)])
        file.close()

    @property
    def _app(self) -> str:
        return str(ray.serve.get_replica_context().app_name)

    async def _keep(self) -> None:
        while True:
            try:
                await self._look()
                await self._ask_prices()
            except Exception as error:  # Ray's errors have no common type, and the next look may find it well again
                _log.warning("the books are behind: %s", error_line(error))
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        table = await asyncio.to_thread(node_table)
        self._nodes = node_rows(table)
        self._pending += await self._newly_served()
        self._decisions = decision_rows(await asyncio.to_thread(decisions, self._app))
        self._take([machine_of(row) for row in table], time.time())

    def _take(self, machines: Sequence[Life], now_s: float) -> None:
        ledger = self._file.ledger
        first_s = (ledger.seen_s or 0.0) if ledger.here else now_s  # nobody served on what was there before
        entries = observe(ledger, machines, self._pending, now_s)
        entries = [replace(entry, start_s=max(entry.start_s, first_s)) if isinstance(entry, Joined) else entry for entry in entries]
        last_s = ledger.ticks[-1][0] if ledger.ticks else 0.0
        if len(entries) > 1 or now_s - last_s >= TICK_S:
            self._file.append(entries)
            self._pending = 0

    async def _newly_served(self) -> int:
        """Tokens that gateways have sent and that are not counted yet."""
        return self._newly(await asked([deployment(GATEWAY)], "tokens_sent", patience_s=LOOK_S))

    def _newly(self, answers: Sequence[tuple[str, float, int]]) -> int:
        """What is new in gateways' (name, since when it is there, tokens sent since). What one had sent under a keeper before is not."""
        new = 0
        for name, since_s, total in answers:
            counted = self._known_s is not None and since_s < self._known_s
            new += total - self._heard.get(name, total if counted else 0)
            self._heard[name] = total
        return new

    async def _ask_prices(self) -> None:
        """Once an hour, and when a machine of another type or zone comes."""
        pools = frozenset(Pool(row["zone"], row["type"]) for row in self._nodes)
        if self._own or not pools or (pools == self._priced[0] and time.time() < self._priced[1] + PRICES_S):
            return
        self._priced = (pools, time.time())
        book, self._provenance = await asyncio.to_thread(prices_of, pools, {})
        known = set(self._file.ledger.book.prices())
        self._file.append([price for price in book.prices() if price not in known])


def _news(book: PriceBook, prices: Sequence[Price], now_s: float) -> list[Price]:
    """Those of the owner's prices that the book does not have yet; they hold from now on."""
    known = {(price.pool, price.market): series[-1].per_hour for series in book.series.values() for price in series[-1:]}
    return [replace(price, since_s=now_s) for price in prices if known.get((price.pool, price.market)) != price.per_hour]


def decision_rows(notes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The policies' notes (serve.scaling.autoscaling), the latest first, in words."""
    rows = []
    for note in reversed(notes):
        words = [f"{count} {market.replace('-', ' ')}" for market, count in note["replicas"].items()]
        words += [f"{len(note['give_back'])} given back"] if note["give_back"] else []
        rows.append({"at_s": note["decided_s"], "what": " · ".join(words), "reasons": list(note["reasons"])})
    return rows


def _sum(machines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [machine[name] for machine in machines if machine[name] is not None]
    return sum(known) if known else None
