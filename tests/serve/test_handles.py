"""Handles to real replicas: a stream opens and a pull happens at the replica that was chosen."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import ray.serve
from ray.serve.config import RequestRouterConfig

from serve.engine.request import Request
from serve.handles import Handles
from serve.migrate import Begun, Frame, Offer, Pulled, Tokens
from serve.request_router import ChosenReplica
from serve.router import BOARD, Place

REQUEST, OFFER = Request(id="r", prompt=(1, 2)), Offer("actor", "source", "r#0")


@ray.serve.deployment(
    num_replicas=2, ray_actor_options={"num_cpus": 0.1}, request_router_config=RequestRouterConfig(request_router_class=ChosenReplica)
)
class Engines:
    """Says what it was asked, and which replica it is."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def stream(self, request: Request, num_chars: int, *, replica_id: str, ticket: str) -> AsyncIterator[Frame]:
        yield Begun(ticket, ray.serve.get_replica_context().replica_id.unique_id)
        yield Tokens(0, request.prompt, num_chars, "")

    async def pull(self, offer: Offer, ticket: str, left_s: float, *, replica_id: str) -> Pulled:
        if ticket == "for ever":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.heard.append("cancelled")
                raise
        return Pulled(ray.serve.get_replica_context().replica_id.unique_id, f"{offer.stream} {ticket} {left_s}")

    async def release(self, ticket: str, *, replica_id: str) -> None:
        self.heard.append(ticket)

    async def told(self, *, replica_id: str) -> list[str]:
        return self.heard


@pytest.fixture(scope="module")
def handles(ray_session: None) -> Iterator[Handles]:
    yield Handles({"Engines": ray.serve.run(Engines.bind(), name="engines", route_prefix=None)})
    ray.serve.shutdown()


async def stream(handles: Handles, replica_id: str) -> list[Frame]:
    return [frame async for frame in handles.open(place(replica_id), REQUEST, 5, "t")]


def place(replica_id: str) -> Place:
    return Place("Engines", replica_id, "", 0, 8)


def test_calls_go_to_the_chosen_replica(handles: Handles) -> None:
    async def scenario() -> None:
        await stream(handles, "")  # the first call makes this process's router
        names = {each.replica_id for each in BOARD.places() if each.deployment == "Engines"}
        assert len(names) == 2
        for name in names:
            assert await stream(handles, name) == [Begun("t", name), Tokens(0, (1, 2), 5, "")]
            assert await handles.pull(place(name), OFFER, "t", 9.0) == Pulled(name, "r#0 t 9.0")

    asyncio.run(scenario())


def test_a_pull_that_nobody_waits_for_any_more_ends_at_the_replica_and_a_ticket_is_given_back_there(handles: Handles) -> None:
    told = ray.serve.get_deployment_handle("Engines", "engines").options(method_name="told")

    async def scenario() -> None:
        await stream(handles, "")
        first, other = (each.replica_id for each in BOARD.places() if each.deployment == "Engines")
        task = asyncio.create_task(handles.pull(place(first), OFFER, "for ever", 9.0))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        handles.release(place(first), "t")
        async with asyncio.timeout(20.0):
            while sorted(await told.remote(replica_id=first)) != ["cancelled", "t"]:
                await asyncio.sleep(0.01)
        assert await told.remote(replica_id=other) == []

    asyncio.run(scenario())
