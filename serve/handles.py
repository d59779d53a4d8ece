"""The engines as a gateway sees them through Ray Serve: streams opened and taken over at the replica that was chosen.

Promise: a call goes to the replica it names, or, for a stream, to another that has room if that one has just gone. Price: Serve's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, cast

import ray.serve
from ray.serve.handle import DeploymentHandle

from serve.engine.request import Request
from serve.migrate import Offer, Pulled
from serve.moves.relay import Source
from serve.router import Place
from serve.telemetry.metrics import PATIENCE_S, answers

__all__ = ["Handles", "asked", "deployment", "peers"]


async def asked(handles: Iterable[DeploymentHandle[Any]], method: str, *args: Any, patience_s: float = PATIENCE_S) -> list[Any]:
    """What every process of these deployments answers in time; those that fail are left out."""
    return await answers(h.broadcast(method, *args).results_async(timeout_s=patience_s, return_exceptions=True) for h in handles)


def peers() -> DeploymentHandle[Any]:
    """A handle to this process's own deployment: itself and its like."""
    return deployment(ray.serve.get_replica_context().deployment)


def deployment(name: str) -> DeploymentHandle[Any]:
    """A handle to another deployment of this process's application."""
    handle: DeploymentHandle[Any] = ray.serve.get_deployment_handle(name, ray.serve.get_replica_context().app_name)
    return handle


class Handles:
    """One handle per deployment of engines (serve.moves.relay.Replicas)."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        # Frames by gRPC, half the CPU of Ray's generators; and a replica whose gateway dies learns of it, for the connection ends.
        by_grpc: dict[str, Any] = {"stream": True, "_by_reference": False}
        self._streams = {name: handle.options(method_name="stream", **by_grpc) for name, handle in handles.items()}
        self._pulls = {name: handle.options(method_name="pull") for name, handle in handles.items()}
        self._releases = {name: handle.options(method_name="release") for name, handle in handles.items()}

    def open(self, place: Place, request: Request, num_chars: int, ticket: str) -> Source:
        """See `serve.moves.relay.Replicas.open`."""
        source: Any = self._streams[place.deployment].remote(request, num_chars, replica_id=place.replica_id, ticket=ticket)
        return cast(Source, source)

    async def pull(self, place: Place, offer: Offer, ticket: str, left_s: float) -> Pulled:
        """See `serve.moves.departure.Pulls.pull`."""
        response: Any = self._pulls[place.deployment].remote(offer, ticket, left_s, replica_id=place.replica_id)
        try:
            return cast(Pulled, await response)
        except asyncio.CancelledError:
            response.cancel()
            raise

    def release(self, place: Place, ticket: str) -> None:
        """See `serve.moves.departure.Pulls.release`."""
        self._releases[place.deployment].remote(ticket, replica_id=place.replica_id)
