"""The choice of a place, and the board on which the gateway sees the places."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.router import LEVELS, SLACK, Affinity, Board, Place, Wanted, choose, prefixes

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


@given(places, st.sets(st.sampled_from(["n1", "n2", "n3"])), st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 5)))
def test_the_longest_prefix_wins_among_places_about_as_loaded_as_the_least(
    found: list[Place], draining: set[str], known: dict[str, int]
) -> None:
    open_ = [p for p in found if p.node_id not in draining and p.load < p.capacity]
    choice = choose(found, draining=draining, match=lambda replica: known.get(replica, 0))
    assert (choice is None) == (not open_)
    if choice is not None:
        least = min(p.load for p in open_)
        longest = max(known.get(p.replica_id, 0) for p in open_ if p.load <= least + SLACK)
        assert choice.place in open_
        assert choice.place.load <= least + SLACK
        assert known.get(choice.place.replica_id, 0) == longest
        assert choice.reason.startswith("has the prefix") == (longest > 0)
        assert longest or choice.place.load == least


def test_a_machine_with_notice_is_taken_where_the_others_have_much_more() -> None:
    def chosen(going: int, other: int) -> str:
        choice = choose([Place("spot", "g", "n1", going, 9), Place("spot", "o", "n2", other, 9)], draining=(), leaving={"n1"})
        assert choice is not None
        return choice.place.replica_id

    assert [chosen(0, SLACK - 1), chosen(0, SLACK + 1), chosen(SLACK, 0), chosen(3, 9)] == ["o", "g", "o", "g"]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=300), st.integers(0, 300), st.integers(1, 8))
def test_equal_beginnings_have_equal_digests_and_others_do_not(prompt: list[int], cut: int, block_size: int) -> None:
    mine, other = prefixes(prompt, block_size), prefixes([*prompt[:cut], *([9] * 300)], block_size)
    shared = sum(level * block_size <= min(cut, len(prompt)) for level in LEVELS)
    assert mine[:shared] == other[:shared]
    assert not set(mine[shared:]) & set(other[shared:])
    assert not set(mine) & set(prefixes(prompt, block_size, tenant="another"))


def test_an_adapter_is_a_prefix_of_its_own() -> None:
    assert prefixes([1] * 8, 4) == prefixes([1] * 9, 4)
    one, other = prefixes([1] * 3, 4, adapter="polite"), prefixes([1] * 3, 4, adapter="rude")
    assert len(one) == 1
    assert one != other


def test_affinity_remembers_the_latest_prefixes_only() -> None:
    affinity, wanted = Affinity(size=6), Wanted((b"1", b"2", b"4"))
    affinity.remember(wanted, "a")
    affinity.remember(Wanted((b"1", b"other")), "b")
    assert [affinity.match(wanted, replica) for replica in "abc"] == [3, 1, 0]
    affinity.remember(wanted, "c")  # "a" loses its oldest two
    assert [affinity.match(wanted, replica) for replica in "abc"] == [3, 1, 3]
    affinity.remember(wanted, "b")
    assert [affinity.match(wanted, replica) for replica in "abc"] == [0, 3, 3]


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


def test_requests_follow_their_prefix_until_its_place_is_busier_than_the_others() -> None:
    class Wide(Replicas):
        def places(self, streams: Counter[str]) -> list[Place]:
            return [Place("spot", name, f"node-{name}", streams.get(name, 0), 99) for name in self.names]

    async def scenario() -> list[str]:
        board = Board()
        board.register("spot", Wide("a", "b"))
        mine, others = Wanted((b"mine",)), Wanted((b"others",))
        first = (await board.place(0.1, mine)).place.replica_id
        assert (await board.place(0.1, others)).place.replica_id != first
        return [(await board.place(0.1, mine)).place.replica_id for _ in range(8)].count(first)

    assert SLACK <= asyncio.run(scenario()) < 8


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
