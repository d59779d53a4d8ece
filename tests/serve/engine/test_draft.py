"""Drafting: the contract in any order of calls, and what drafts earn on real answers."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.draft import NgramDrafter, SharedNgrams

tokens = st.lists(st.integers(0, 5), max_size=30)
calls = st.lists(
    st.one_of(
        st.tuples(st.just("observe"), tokens),
        st.tuples(st.just("propose"), st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0, 5.0])),
        st.tuples(st.just("judge"), st.integers(0, 5)),
        st.tuples(st.just("recycle"), st.lists(st.integers(0, 5), max_size=4)),
        st.tuples(st.just("learn"), tokens),
    ),
    max_size=40,
)


def perform(steps: list[tuple[str, Any]], order: int, max_draft: int) -> tuple[list[list[int]], set[int]]:
    """The proposals, and all tokens the drafter was told."""
    shared = SharedNgrams(capacity=50)
    drafter, proposals, seen = NgramDrafter(order, max_draft, shared), [], set()
    for name, value in steps:
        if name == "learn":
            shared.learn(value)
        elif name == "recycle":
            drafter.recycle(value, [v + 1 for v in value])
            seen |= {v + 1 for v in value}
        else:
            result = getattr(drafter, name)(value)
            proposals += [result] if name == "propose" else []
        seen |= set(value) if name in ("learn", "observe") else set()
    return proposals, seen


@settings(deadline=None)
@given(calls, st.integers(2, 10), st.integers(1, 70))
def test_any_order_of_calls_gives_short_drafts_of_tokens_seen_the_same_each_time(
    steps: list[tuple[str, Any]], order: int, max_draft: int
) -> None:
    proposals, seen = perform(steps, order, max_draft)
    assert all(len(draft) <= max_draft for draft in proposals)
    assert {token for draft in proposals for token in draft} <= seen
    assert perform(steps, order, max_draft)[0] == proposals


def test_what_repeats_is_drafted_as_far_as_it_goes() -> None:
    drafter = NgramDrafter()
    drafter.observe([*range(100, 160), 100, 101, 102])
    assert drafter.propose(0.0) == list(range(103, 119))


def test_a_text_without_repeats_drafts_nothing() -> None:
    drafter = NgramDrafter()
    drafter.observe(range(50))
    assert drafter.propose(0.0) == []


def test_drafts_shorten_as_tokens_cost_more() -> None:
    lengths = []
    for cost in (0.0, 0.1, 0.4, 0.9, 3.0):
        drafter = NgramDrafter()
        drafter.observe([1, 2, 3, 4] * 10)
        lengths.append(len(drafter.propose(cost)))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 16
    assert lengths[-1] == 0


def test_failures_end_drafts_and_guesses_that_would_have_held_bring_them_back() -> None:
    drafter = NgramDrafter()
    drafter.observe([1, 2, 3, 4] * 10)
    for i in range(60):
        drafter.propose(0.1)
        drafter.judge(0)
        drafter.observe([100 + i, 1, 2])  # never what followed before
    assert drafter.propose(0.3) == []
    drafted = 0
    for token in [3, 4, 1, 2] * 30:
        drafted += len(drafter.propose(0.3))
        drafter.judge(0)
        drafter.observe([token])
    assert drafted > 0


def test_a_match_goes_on_after_one_token_that_was_another() -> None:
    drafter = NgramDrafter()
    drafter.observe([*range(10, 40), 10, 11, 12, 13])
    assert drafter.propose(0.1)[0] == 14
    drafter.judge(0)
    drafter.observe([99])  # stands for 14
    assert drafter.propose(0.1)[:2] == [15, 16]


def test_earlier_answers_help_where_the_own_text_is_new() -> None:
    shared = SharedNgrams(capacity=1000)
    shared.learn([5, 6, 7, 8, 9] * 3)
    drafter = NgramDrafter(shared=shared)
    drafter.observe([1, 2, 5, 6])
    assert drafter.propose(0.02)[:3] == [7, 8, 9]


def test_recycled_successors_are_the_last_resort() -> None:
    drafter = NgramDrafter()
    drafter.observe([1, 2])
    drafter.recycle([2, 8], [3, 9])
    assert drafter.propose(0.02)[:1] == [3]
    drafter.observe([7, 2])
    assert drafter.propose(0.02)[:1] == [7]


def test_a_draft_that_was_cut_short_is_not_counted_as_a_failure() -> None:
    whole, cut = NgramDrafter(), NgramDrafter()
    for drafter in (whole, cut):
        drafter.observe([1, 2, 3, 4] * 10)
        for _ in range(20):
            draft = drafter.propose(0.05)
            kept = draft if drafter is whole else draft[:1]
            drafter.judge(len(kept))
            drafter.observe(draft[: len(kept) + 1])
    assert len(cut.propose(0.05)) == 16


@pytest.mark.parametrize(("order", "max_draft"), [(1, 4), (4, 0)])
def test_what_cannot_draft_is_refused(order: int, max_draft: int) -> None:
    with pytest.raises(ValueError, match="drafter: "):
        NgramDrafter(order, max_draft)


@pytest.fixture(scope="module")
def turns(data_dir: Path) -> list[dict[str, Any]]:
    with gzip.open(data_dir / "draft" / "vicuna7b-mtbench.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def replay(turns: list[dict[str, Any]], verify_cost: float, shared: SharedNgrams | None) -> float:
    """Speed-up: tokens over the cost of all steps."""
    cost, num_tokens = 0.0, 0
    for turn in turns:
        drafter, answer, at = NgramDrafter(shared=shared), turn["answer_ids"], 0
        drafter.observe(turn["prompt_ids"])
        while at < len(answer):
            draft = drafter.propose(verify_cost)[: len(answer) - at - 1]
            held = next((i for i, (d, a) in enumerate(zip(draft, answer[at:], strict=False)) if d != a), len(draft))
            drafter.judge(held)
            drafter.observe(answer[at : at + held + 1])
            at += held + 1
            cost += 1 + verify_cost * len(draft)
        num_tokens += len(answer)
        if shared is not None:
            shared.learn(answer)
    return num_tokens / cost


@pytest.mark.parametrize(
    ("verify_cost", "least"), [(0.02, 1.72), (0.05, 1.6), (0.1, 1.46), (0.2, 1.3), (0.3, 1.2), (0.5, 1.05), (1.0, 1.0), (2.0, 1.0)]
)
def test_replaying_real_answers_earns_what_is_promised(turns: list[dict[str, Any]], verify_cost: float, least: float) -> None:
    assert replay(turns, verify_cost, SharedNgrams(capacity=200_000)) >= least


@pytest.mark.parametrize(("verify_cost", "least"), [(0.02, 1.6), (0.3, 1.18)])
def test_each_request_for_itself_earns_most_of_it(turns: list[dict[str, Any]], verify_cost: float, least: float) -> None:
    assert replay(turns, verify_cost, None) >= least


def test_a_token_costs_microseconds(turns: list[dict[str, Any]]) -> None:
    few = turns[:20]
    seconds = []
    for _ in range(3):
        began = time.process_time()
        replay(few, 0.02, SharedNgrams(capacity=200_000))
        seconds.append(time.process_time() - began)
    assert min(seconds) / sum(len(turn["answer_ids"]) for turn in few) < 60e-6  # 15 on a quiet core
