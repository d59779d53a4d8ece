"""The engine as a Ray Serve deployment; what it does with streams is in serve/streams.py.

Promise: from the moment this node drains (seen within 0.2 s) or Serve stops this replica nothing is admitted, and every live stream is
offered to another replica. A failed step fails the replica, aloud: its streams end with the error, its health check fails, and Serve
replaces it. Price: none beyond Serve's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import ray
import ray.serve
from numpy.typing import NDArray

from cluster.bulletin import Poster
from cluster.preemption import DrainWatch
from serve.engine.config import EngineConfig
from serve.engine.request import Request
from serve.folder import adapter_folder, model_folder
from serve.migrate import Frame, Offer, Pulled
from serve.moves import lend
from serve.moves.handover import MoveKv
from serve.scaling.load import REPLICAS
from serve.scaling.stopping import leave_on_stop
from serve.streams import Streams
from serve.telemetry.metrics import ReplicaMetrics

__all__ = ["EngineReplica"]


class EngineReplica:
    """One replica."""

    def __init__(self, model: str, config: EngineConfig, frame_s: float = 0.02, move_kv: MoveKv = "auto") -> None:
        """`model` and the adapters' folders are folders that this node can read, or s3://…"""
        from serve.engine.engine import Engine  # torch: only where the engine runs, not where the deployment is declared

        self._engine = Engine.load(model_folder(model), config.with_folders(adapter_folder))
        me = ray.serve.get_replica_context().replica_id
        self._node_id, self._replica_id = ray.get_runtime_context().get_node_id(), me.unique_id
        self._streams = Streams(
            self._engine, node_id=self._node_id, replica_id=self._replica_id, actor=me.to_full_id_str(), frame_s=frame_s, move_kv=move_kv
        )
        lend.LENDERS[self._replica_id] = self._streams.lender
        self._watch = DrainWatch()
        self._watch.add_callback(self._streams.leave)
        leave_on_stop(self._streams.leave, lambda: self._watch.deadline)  # scaled down or replaced: the same as a drain

        self._deployment = ray.serve.get_replica_context().deployment
        self._metrics = ReplicaMetrics()
        self._poster = Poster(REPLICAS, self._replica_id, self._report)

    async def stream(self, request: Request, num_chars: int, *, replica_id: str = "", ticket: str = "") -> AsyncIterator[Frame]:
        """See `Streams.stream`; `replica_id` is read on the way here, by the router."""
        async with aclosing(self._streams.stream(request, num_chars, ticket)) as frames:
            async for frame in frames:
                yield frame

    async def pull(self, offer: Offer, ticket: str, left_s: float, *, replica_id: str) -> Pulled:
        """Take over the stream that is offered, whose machine has `left_s` seconds left; see `Streams.pull`."""
        if replica_id != self._replica_id:
            raise RuntimeError(f"{replica_id} has gone; {self._replica_id} was not asked")
        return await self._streams.pull(lend.RemoteLender(offer), ticket, left_s)

    async def release(self, ticket: str, *, replica_id: str) -> None:
        """Keep no KV under this ticket any more: the stream will not come. Nothing happens at another replica, which has none."""
        if replica_id == self._replica_id:
            self._streams.puller.release(ticket)

    async def embed(self, texts: Sequence[Sequence[int]], adapter: str, *, replica_id: str = "") -> NDArray[np.float32]:
        """[n, hidden] of token ids, each of length 1; see `Streams.embed`."""
        return await self._streams.embed(texts, adapter)

    def _report(self) -> dict[str, Any]:
        return {"node_id": self._node_id, "deployment": self._deployment, "leaving": self._streams.leaving}

    def stats(self) -> dict[str, Any]:
        """The engine's own figures, and where it runs."""
        return {
            **self._streams.stats,
            "prompt_tokens_per_s": self._engine.prompt_tokens_per_s,
            "link_bytes_per_s": self._streams.puller.link.per_s,
            "node_id": self._node_id,
            "replica_id": self._replica_id,
            "draining": self._streams.leaving,
            "market": self._deployment,
        }

    def check_health(self) -> None:
        """Serve's question, every 2 seconds; raises if the engine has failed, and else tells Ray's exporter how it is."""
        if self._streams.failure is not None:
            raise RuntimeError(f"the engine failed: {self._streams.failure}")
        self._metrics.report(self.stats())
