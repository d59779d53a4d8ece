"""Embeddings as a gateway has them made: by one replica, or another if that one is lost meanwhile.

Promise: a client that goes away stops the reading (serve/reading.py) at its next pass. Price: one call per request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from serve.protocol import ApiError
from serve.router import Board, Place

__all__ = ["Embedder"]

ATTEMPTS = 3
"""Replicas that may fail a request before it is given up."""
_log = logging.getLogger(__name__)


class Embedder:
    """Asks the replicas."""

    def __init__(self, replicas: Mapping[str, DeploymentHandle[Any]], board: Board, *, max_wait_s: float, max_request_s: float) -> None:
        self._calls = {name: handle.options(method_name="embed") for name, handle in replicas.items()}
        self._board, self._max_wait_s, self._max_request_s = board, max_wait_s, max_request_s

    async def embed(self, texts: Sequence[Sequence[int]], adapter: str) -> NDArray[np.float32]:
        """[n, hidden], each of length 1. ApiError if no replica is there, several have failed, or it takes too long."""
        try:
            async with asyncio.timeout(self._max_request_s):
                return await self._from_any(texts, adapter)
        except TimeoutError:
            message = f"the embeddings were not complete within {self._max_request_s:g} s; ask for fewer"
            raise ApiError(504, message, code="request_timeout") from None

    async def _from_any(self, texts: Sequence[Sequence[int]], adapter: str) -> NDArray[np.float32]:
        for _ in range(ATTEMPTS):
            choice = await self._board.place(self._max_wait_s)
            if choice is None:
                raise ApiError(503, f"no replica became free within {self._max_wait_s:g} s; try again later", code="no_capacity")
            try:
                return await self._ask(choice.place, texts, adapter)
            except Exception as error:  # whatever ends it there, it may succeed elsewhere
                _log.warning(
                    "embeddings at %s failed: %s: %s", choice.place.replica_id, type(error).__name__, str(error).partition("\n")[0]
                )
                self._board.suspect(choice.place.replica_id)
            finally:
                self._board.leave(choice.place.replica_id)
        raise ApiError(500, f"{ATTEMPTS} replicas failed this request; it is given up")

    async def _ask(self, place: Place, texts: Sequence[Sequence[int]], adapter: str) -> NDArray[np.float32]:
        response: Any = self._calls[place.deployment].remote(texts, adapter, replica_id=place.replica_id)
        try:
            found: NDArray[np.float32] = await response
            return found
        except asyncio.CancelledError:
            response.cancel()
            raise
