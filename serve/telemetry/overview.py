"""A gateway's view of the whole service, for the live page: it asks the other gateways, the replicas and the books.

Promise: /status at any gateway shows all of them, and says which one was asked; who does not answer in time is left out, and the
rest is shown. Many viewers cost what one does: an answer is good for `FRESH_S`. Price: one call per process and answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.serve
from ray.serve.handle import DeploymentHandle
from starlette.responses import HTMLResponse, JSONResponse, Response

from cluster.preemption import DrainWatch
from serve.handles import asked, peers
from serve.moves.journal import Journal
from serve.router import BOARD
from serve.telemetry.metrics import GatewayMetrics
from serve.telemetry.page import PAGE
from serve.telemetry.status import MOVES, gateway_report, status

__all__ = ["Overview", "live_page"]

FRESH_S = 0.5
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


def live_page() -> Response:
    """The page itself, which holds no figure: it asks for /status every second."""
    return HTMLResponse(PAGE, headers={"content-security-policy": _POLICY, "cache-control": "no-cache"})


class Overview:
    """One gateway's."""

    def __init__(
        self, model: str, slots: int, journal: Journal, metrics: GatewayMetrics, watch: DrainWatch, engines: list[DeploymentHandle[Any]],
        books: DeploymentHandle[Any] | None,
    ) -> None:  # fmt: skip
        """`slots`: streams that a replica runs at once."""
        self._model, self._slots, self._journal, self._metrics, self._watch = model, slots, journal, metrics, watch
        self._engines, self._books = engines, books
        self._since_s = time.time()
        self._answer: tuple[float, asyncio.Task[dict[str, Any]]] | None = None

    def tokens_sent(self) -> tuple[str, float, int]:
        """This gateway, since when it has been there, and the tokens it has sent since: with a total, an answer that is lost loses none."""
        return _name(), self._since_s, int(self._metrics.num_tokens)

    def report(self) -> dict[str, Any]:
        """This gateway's part."""
        counters = {
            "since_s": self._since_s,
            "tokens": self._metrics.num_tokens,
            "waiting": self._sample("sterna_queue_streams"),
            "refused": self._sum("sterna_refused_total"),
            "requests": self._sum("sterna_requests_total"),
        }
        moves = {how: int(self._sample("sterna_migrations_total", {"how": how})) for how in MOVES}
        node = ray.get_runtime_context().get_node_id()
        return gateway_report(_name(), node, list(self._journal.stays), counters=counters, moves=moves, now_s=time.time())

    async def page(self) -> Response:
        """The answer to GET /status."""
        if self._answer is None or (self._answer[1].done() and time.monotonic() - self._answer[0] > FRESH_S):
            self._answer = (time.monotonic(), asyncio.create_task(self._ask()))
        return JSONResponse(await asyncio.shield(self._answer[1]), headers={"cache-control": "no-store"})

    async def costs(self) -> dict[str, Any] | None:
        """The bill so far (cluster.ledger.Bill.summary), if the books answer."""
        found = await self._ask_books()
        return found["costs"] if found else None

    async def _ask_books(self) -> dict[str, Any] | None:
        if self._books is None:
            return None
        found = await asked([self._books], "report")
        return found[0] if found else None

    async def _ask(self) -> dict[str, Any]:
        reports, replicas, books = await asyncio.gather(asked([peers()], "overview"), asked(self._engines, "stats"), self._ask_books())
        deployments = {place.replica_id: place.deployment for place in BOARD.places()}
        return status(
            asked=_name(), model=self._model, reports=reports or [self.report()],
            replicas=replicas, deployments=deployments, slots=self._slots,
            drains=self._watch.nodes, books=books, now_s=time.time(),
        )  # fmt: skip

    def _sum(self, name: str) -> float:
        """Over all labels."""
        return sum(sample.value for family in self._metrics.families() for sample in family.samples if sample.name == name)

    def _sample(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        return self._metrics.registry.get_sample_value(name, dict(labels or {})) or 0.0


def _name() -> str:
    return str(ray.serve.get_replica_context().replica_id.unique_id)
