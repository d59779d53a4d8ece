"""The choice of a place, and the board on which the gateway sees the places."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.router import Board, Place, choose

places = st.lists(
    st.builds(
        Place,
        st.sampled_from(["spot", "on_demand"]),
        st.sampled_from("abcdefgh"),
        st.sampled_from(["n1", "n2", "n3"]),
        st.integers(0, 6),
        st.integers(1, 6),
    ),
    unique_by=lambda place: place.replica_id,
)


@given(places, st.sets(st.sampled_from(["n1", "n2", "n3"])), st.sets(st.sampled_from("abcdefgh")))
def test_the_choice_is_the_least_loaded_place_that_stays(found: list[Place], draining: set[str], suspects: set[str]) -> None:
    open_ = [p for p in found if p.node_id not in draining and p.replica_id not in suspects and p.load < p.capacity]
    choice = choose(found, draining=draining, suspects=suspects)
    assert (choice is None) == (not open_)
    if choice is not None:
        assert choice.place in open_
        assert choice.place.load == min(p.load for p in open_)
        assert choice == choose(found, draining=draining, suspects=suspects)


def test_of_equally_loaded_places_the_cheaper_deployment_is_chosen() -> None:
    fixed, spot = Place("on_demand", "a", "n1", 2, 8), Place("spot", "b", "n2", 2, 8)
    assert choose([spot, fixed], draining=()).place == spot
    assert choose([fixed, spot], draining=()).place == fixed


class Replicas:
    """A deployment whose replicas a test sets."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def places(self, streams: Counter[str]) -> list[Place]:
        return [Place("spot", name, f"node-{name}", streams.get(name, 0), 2) for name in self.names]


def test_streams_spread_and_a_full_board_makes_them_wait() -> None:
    async def scenario() -> None:
        board = Board()
        board.register("spot", Replicas("a", "b"))
        taken = [(await board.place(0.1)).place.replica_id for _ in range(4)]
        assert sorted(taken) == ["a", "a", "b", "b"]
        assert await board.place(0.05) is None
        waiting = asyncio.create_task(board.place(5.0))
        await asyncio.sleep(0)
        board.leave("b")
        assert (await asyncio.wait_for(waiting, 0.2)).place.replica_id == "b"

    asyncio.run(scenario())


def test_a_new_replica_wakes_those_who_wait() -> None:
    async def scenario() -> None:
        board, replicas = Board(), Replicas()
        board.register("spot", replicas)
        waiting = asyncio.create_task(board.place(5.0))
        await asyncio.sleep(0)
        replicas.names = ("late",)
        await asyncio.to_thread(board.changed)  # Serve's routers live in another thread
        assert (await asyncio.wait_for(waiting, 0.2)).place.replica_id == "late"

    asyncio.run(scenario())


def test_suspects_and_draining_nodes_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board()
    board.register("spot", Replicas("a", "b", "c"))
    board.suspect("a")
    board.draining = lambda: {"node-b"}
    assert board.choose().place.replica_id == "c"
    board.draining = lambda: {"node-b", "node-c"}
    assert board.choose() is None
    monkeypatch.setattr("serve.router.SUSPECT_S", 0.0)
    board.suspect("a")  # a suspicion that ends at once
    assert board.choose().place.replica_id == "a"


def test_a_suspicion_that_comes_while_a_router_chooses_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board()
    board.register("spot", Replicas("a", "b", "c"))
    turns = [lambda: board.suspect("b")]

    class Until(float):
        """An end of suspicion; looking at it gives the gateway's thread its turn, once."""

        def __gt__(self, now: float) -> bool:
            while turns:
                turns.pop()()
            return True

        def __radd__(self, now: float) -> "Until":
            return self

    monkeypatch.setattr("serve.router.SUSPECT_S", Until())
    board.suspect("a")
    board.choose()
    assert not turns
    assert board.choose().place.replica_id == "c"
