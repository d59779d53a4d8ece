"""The policies by themselves: who goes first, and how far anyone can be overtaken."""

from __future__ import annotations

from collections.abc import Sequence as Series

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.blocks import root_hash
from serve.engine.policy import (
    ARRIVALS_PER_TOKEN,
    INPUT_COST,
    PREDICTED_AT_ONCE,
    FirstCome,
    Policy,
    ShortestPredicted,
    VirtualTime,
    policy_named,
)
from serve.engine.request import Request, Sampling
from serve.engine.sequence import Sequence
from serve.engine.text import TextStream
from serve.engine.toy import ToyTokenizer


def make_sequence(arrival: int, prompt: Series[int] = (1, 2), max_tokens: int = 500, **fields: str) -> Sequence:
    request = Request(id=str(arrival), prompt=tuple(prompt), sampling=Sampling(max_tokens=max_tokens, seed=0), **fields)
    limit = len(request.prompt) + max_tokens
    text = TextStream(ToyTokenizer(), request.prompt)
    return Sequence(request=request, arrival=arrival, limit=limit, stop_ids=frozenset({0}), text=text, drafter=None, root=root_hash("m"))


def finish(policy: Policy, sequence: Sequence, num_tokens: int) -> None:
    for _ in range(num_tokens):
        sequence.append(1)
    sequence.finish_reason = "stop"
    policy.end(sequence)


def first(policy: Policy, waiting: Series[Sequence]) -> int:
    return min(waiting, key=lambda s: (policy.key(s), s.arrival)).arrival


@pytest.mark.parametrize(("name", "kind"), [("fcfs", FirstCome), ("fair", VirtualTime), ("shortest", ShortestPredicted)])
def test_the_config_names_them(name: str, kind: type) -> None:
    assert isinstance(policy_named(name), kind)


def test_first_come_is_first_served() -> None:
    assert first(FirstCome(), [make_sequence(i) for i in (4, 2, 9)]) == 2


def test_the_client_served_least_goes_first() -> None:
    policy = VirtualTime()
    greedy = [make_sequence(i, client="greedy") for i in range(3)]
    for sequence in greedy:
        policy.arrive(sequence)
    policy.start(greedy[0], 100)
    modest = make_sequence(3, client="modest")
    policy.arrive(modest)
    assert first(policy, [*greedy[1:], modest]) == 1, "a newcomer is level with who waits, and came later"
    policy.serve(greedy[0], 1)
    assert first(policy, [*greedy[1:], modest]) == 3
    greedy[1].finish_reason = None
    policy.end(greedy[1])  # cancelled before it started
    assert policy.stats() == {"clients": 2}


def test_a_request_cancelled_before_it_started_keeps_no_place_for_its_client() -> None:
    policy = VirtualTime()
    gone, other = make_sequence(0, client="gone"), make_sequence(1, client="other")
    for sequence in (gone, other):
        policy.arrive(sequence)
    policy.end(gone)
    policy.start(other, 100)
    late = make_sequence(2, client="late")
    policy.arrive(late)
    assert policy.key(late) == 100.0, "nobody waits, so it begins where the last one that waited stood"


def test_without_a_client_the_tenant_counts() -> None:
    assert make_sequence(0, tenant="t").client == "t"
    assert make_sequence(0, tenant="t", client="c").client == "c"


def test_the_shortest_answer_goes_first_once_lengths_are_known() -> None:
    policy = ShortestPredicted()
    for arrival in range(40):
        for client, length in (("long", 300), ("short", 10)):
            sequence = make_sequence(arrival, client=client)
            policy.arrive(sequence)
            finish(policy, sequence, length)
    long, short = make_sequence(100, client="long"), make_sequence(101, client="short")
    for sequence in (long, short):
        policy.arrive(sequence)
    assert first(policy, [long, short]) == 101
    late = make_sequence(100 + ARRIVALS_PER_TOKEN * 300, client="short")
    policy.arrive(late)
    assert first(policy, [long, late]) == 100, "no more later requests overtake than its predicted tokens allow"
    assert policy.stats()["lengths_learnt"] == 80
    assert policy.stats()["mean_length_error"] < 60


def test_a_cancelled_answer_teaches_nothing() -> None:
    policy = ShortestPredicted()
    sequence = make_sequence(0)
    policy.arrive(sequence)
    policy.end(sequence)
    assert policy.stats()["lengths_learnt"] == 0


def test_what_was_emitted_elsewhere_is_not_waited_for() -> None:
    policy = ShortestPredicted()
    request = Request(id="r", prompt=(1,), emitted=(1,) * 200, sampling=Sampling(max_tokens=220, seed=0))
    text = TextStream(ToyTokenizer(), request.prompt)
    moved = Sequence(request=request, arrival=0, limit=221, stop_ids=frozenset(), text=text, drafter=None, root=b"")
    policy.arrive(moved)
    assert policy.key(moved) == ARRIVALS_PER_TOKEN * (20 + INPUT_COST)


def test_those_that_wait_are_predicted_anew_when_much_was_learnt() -> None:
    policy = ShortestPredicted()
    waiting = make_sequence(0)
    policy.arrive(waiting)
    before, num_moved = policy.key(waiting), 0
    for arrival in range(1, 100):
        finish(policy, make_sequence(arrival), 9)
        num_moved += len(list(policy.moved()))
    assert policy.key(waiting) < before / 4
    assert 10 < num_moved < 50, "not after each answer"
    assert not list(policy.moved())


def test_a_long_line_is_predicted_anew_a_few_at_a_time() -> None:
    policy = ShortestPredicted()
    waiting = [make_sequence(arrival) for arrival in range(3 * PREDICTED_AT_ONCE - 1)]
    for sequence in waiting:
        policy.arrive(sequence)
    policy.end(waiting.pop(1))  # cancelled
    for arrival in range(100, 110):
        finish(policy, make_sequence(arrival), 9)
    policy.start(waiting.pop(0), 2)
    moved = [list(policy.moved()) for _ in range(4)]
    assert [s.arrival for batch in moved for s in batch] == [s.arrival for s in waiting], "those predicted longest ago first"
    assert [len(batch) for batch in moved] == [PREDICTED_AT_ONCE, PREDICTED_AT_ONCE, PREDICTED_AT_ONCE - 3, 0]


@given(st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=2, max_size=80))
def test_nobody_is_overtaken_by_more_than_its_limit(jobs: list[tuple[int, bool]]) -> None:
    """One at a time, the shortest first, while new ones come in: for each request count who came later and went first."""
    policy = ShortestPredicted()
    waiting: list[Sequence] = []
    order: list[Sequence] = []
    for arrival, (limit, serve) in enumerate(jobs):
        waiting.append(make_sequence(arrival, max_tokens=limit, client=str(limit)))
        policy.arrive(waiting[-1])
        if serve:
            order.append(waiting.pop(waiting.index(min(waiting, key=policy.key))))
            finish(policy, order[-1], order[-1].request.sampling.max_tokens)
    order += sorted(waiting, key=policy.key)
    for place, sequence in enumerate(order):
        overtakers = sum(other.arrival > sequence.arrival for other in order[:place])
        assert overtakers <= ARRIVALS_PER_TOKEN * (sequence.request.sampling.max_tokens + INPUT_COST * 2)
