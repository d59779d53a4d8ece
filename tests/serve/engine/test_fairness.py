"""The virtual token counter: backlogged clients stay level, absence earns nothing, memory is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve.engine.fairness import INPUT_WEIGHT, OUTPUT_WEIGHT, VirtualTokenCounter


def test_inputs_and_outputs_weigh_what_they_should() -> None:
    counter = VirtualTokenCounter()
    counter.arrive("a")
    counter.serve("a", inputs=10, outputs=3)
    assert counter.of("a") == 10 * INPUT_WEIGHT + 3 * OUTPUT_WEIGHT


def test_one_that_was_away_is_lifted_to_the_least_of_those_that_wait() -> None:
    counter = VirtualTokenCounter()
    for client, served in (("a", 50), ("b", 80)):
        counter.arrive(client)
        counter.serve(client, inputs=served)
    counter.arrive("new")
    assert counter.of("new") == 50
    counter.leave("new")
    counter.serve("new", inputs=500)
    counter.arrive("new")
    assert counter.of("new") == 550, "what it was served is never forgotten in its favour"


def test_absence_earns_nothing() -> None:
    counter = VirtualTokenCounter()
    for client in ("early", "steady"):
        counter.arrive(client)
    counter.leave("early")
    counter.serve("steady", inputs=400)
    counter.arrive("early")
    assert counter.of("early") == 400, "level with those that waited meanwhile, whatever it had"


def test_what_a_forgotten_client_owed_is_not_forgotten() -> None:
    counter = VirtualTokenCounter(max_idle=1)
    counter.arrive("steady")
    for client, served in (("a", 5), ("b", 7), ("c", 0)):
        counter.arrive(client)
        counter.leave(client)
        counter.serve(client, inputs=served)
    counter.arrive("d")
    counter.leave("d")  # too many idle ones: those that owe nothing go
    assert [counter.of(client) for client in ("a", "b", "c")] == [5, 7, 0]
    assert len(counter) == 3


def test_after_a_quiet_time_a_client_begins_where_the_last_one_left() -> None:
    counter = VirtualTokenCounter()
    counter.arrive("a")
    counter.serve("a", inputs=70)
    counter.leave("a")
    counter.serve("a", outputs=5)  # it runs on
    counter.arrive("b")
    assert counter.of("b") == 70 + 5 * OUTPUT_WEIGHT


def test_clients_with_nothing_to_remember_are_forgotten() -> None:
    counter = VirtualTokenCounter(max_idle=10)
    for i in range(200):
        counter.arrive(f"c{i}")
        counter.leave(f"c{i}")
    counter.arrive("busy")
    counter.serve("busy", inputs=9)
    counter.leave("busy")
    assert len(counter) <= 12
    assert counter.of("busy") == 9


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=60), st.integers(1, 4))
def test_always_the_least_served_keeps_backlogged_clients_within_one_request(jobs: list[tuple[str, int]], max_idle: int) -> None:
    """The idealised server: each turn the least counter gets one request of up to 9 tokens, so counters differ by at most 9."""
    counter = VirtualTokenCounter(max_idle)
    queues: dict[str, list[int]] = {}
    for client, size in jobs:
        queues.setdefault(client, []).append(size)
        counter.arrive(client)
    while any(queues.values()):
        waiting = [client for client, queue in queues.items() if queue]
        counters = [counter.of(client) for client in waiting]
        assert max(counters) - min(counters) <= 9 * INPUT_WEIGHT
        client = min(waiting, key=counter.of)
        counter.leave(client)
        counter.serve(client, inputs=queues[client].pop())
