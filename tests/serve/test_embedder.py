"""A gateway's side of embeddings: another replica where one fails, and an error where all do; handles are doubles, the board is real."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import numpy as np
import pytest

from serve.embedder import ATTEMPTS, Embedder
from serve.protocol import ApiError
from serve.router import Board, Place


class Replicas:
    """A handle of one deployment: calls that end as told, in order."""

    def __init__(self, *ends: Any) -> None:
        self.ends, self.asked = list(ends), []
        self.cancelled = 0

    def options(self, method_name: str) -> Replicas:
        assert method_name == "embed"
        return self

    def remote(self, texts: Any, adapter: str, *, replica_id: str) -> Replicas:
        self.asked.append((replica_id, adapter))
        return self

    def __await__(self) -> Any:
        async def end() -> Any:
            what = self.ends.pop(0)
            if isinstance(what, str):  # never
                await asyncio.Event().wait()
            if isinstance(what, Exception):
                raise what
            return what

        return end().__await__()

    def cancel(self) -> None:
        self.cancelled += 1

    def places(self, streams: Counter[str]) -> list[Place]:
        return [Place("spot", name, f"node-{name}", streams[name], 8) for name in "abcd"]


def embedder_of(replicas: Replicas, max_wait_s: float = 1.0, max_request_s: float = 10.0) -> tuple[Embedder, Board]:
    board = Board()
    board.register("spot", replicas)
    return Embedder({"spot": replicas}, board, max_wait_s=max_wait_s, max_request_s=max_request_s), board  # type: ignore[dict-item]


FOUND = np.ones((1, 2), np.float32)


def test_another_replica_answers_where_one_is_lost() -> None:
    replicas = Replicas(RuntimeError("it died"), FOUND)
    embedder, board = embedder_of(replicas)
    assert asyncio.run(embedder.embed([(1,)], "polite")) is FOUND
    assert [name for name, _ in replicas.asked] == ["a", "b"]
    assert {adapter for _, adapter in replicas.asked} == {"polite"}
    assert all(place.load == 0 for place in board.places()), "no place is kept"


def test_a_request_that_several_failed_is_given_up() -> None:
    embedder, _ = embedder_of(Replicas(*[RuntimeError("it died")] * ATTEMPTS))
    with pytest.raises(ApiError, match="is given up") as caught:
        asyncio.run(embedder.embed([(1,)], ""))
    assert caught.value.status == 500


def test_without_a_replica_it_waits_and_says_so() -> None:
    replicas = Replicas()
    embedder, board = embedder_of(replicas, max_wait_s=0.0)
    board.draining = lambda: [f"node-{name}" for name in "abcd"]
    with pytest.raises(ApiError, match="no replica became free") as caught:
        asyncio.run(embedder.embed([(1,)], ""))
    assert (caught.value.status, caught.value.code) == (503, "no_capacity")


def test_who_goes_away_cancels_the_call() -> None:
    replicas = Replicas("never")
    embedder, board = embedder_of(replicas)

    async def scene() -> None:
        task = asyncio.create_task(embedder.embed([(1,)], ""))
        while not replicas.asked:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(scene())
    assert replicas.cancelled == 1
    assert all(place.load == 0 for place in board.places())


def test_what_takes_too_long_is_given_up() -> None:
    replicas = Replicas("never")
    embedder, _ = embedder_of(replicas, max_request_s=0.01)
    with pytest.raises(ApiError, match=r"not complete within 0\.01 s") as caught:
        asyncio.run(embedder.embed([(1,)], ""))
    assert (caught.value.status, replicas.cancelled) == (504, 1)
