"""Drafting: the n-grams are those of the text, and drafts stop where they stop paying."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.draft import AnpdDrafter, Odds, StepCost

texts = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def plain_guess(text: list[int], longest: int) -> int | None:
    """The definition: the most frequent follower (the latest of equals) of the longest context that was followed before."""
    for size in range(min(longest, len(text)), 0, -1):
        context = text[-size:]
        followers = [(text[i + size], i) for i in range(len(text) - size) if text[i : i + size] == context]
        if followers:
            counts = Counter(token for token, _ in followers)
            most = max(counts.values())
            leaders = {token for token, count in counts.items() if count == most}
            return _latest_leader(followers, leaders, counts)
    return None


def _latest_leader(followers: list[tuple[int, int]], leaders: set[int], counts: Counter) -> int:
    """Of the equally frequent, the one that reached that count last."""
    seen: Counter = Counter()
    best = None
    for token, _ in followers:
        seen[token] += 1
        if best is None or seen[token] >= seen[best]:
            best = token
    assert best in leaders
    assert counts[best] == max(counts.values())
    return best


@settings(deadline=None)
@given(texts)
def test_the_first_guess_is_the_definitions(text: list[int]) -> None:
    drafter = AnpdDrafter(order=4, max_draft=1)
    drafter.observe(text)
    guess = plain_guess(text, longest=3)
    assert drafter.propose(0.0) == ([] if guess is None else [guess])


@settings(deadline=None)
@given(texts, st.integers(1, 39))
def test_observing_in_pieces_is_observing_at_once(text: list[int], cut: int) -> None:
    whole, parts = AnpdDrafter(), AnpdDrafter()
    whole.observe(text)
    parts.observe(text[:cut])
    parts.observe(text[cut:])
    assert whole.propose(0.0) == parts.propose(0.0)


def test_a_miss_drafts_nothing() -> None:
    drafter = AnpdDrafter()
    drafter.observe([1, 2, 3])
    assert drafter.propose(0.0) == []  # in particular nothing from the text's tail to its head


def test_drafts_shorten_as_tokens_cost_more() -> None:
    lengths = []
    for cost in (0.0, 0.1, 0.4, 0.9, 3.0):
        drafter = AnpdDrafter()
        drafter.observe([1, 2, 3, 4] * 10)
        lengths.append(len(drafter.propose(cost)))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 7
    assert lengths[-1] == 0


def test_failures_shorten_drafts_and_disuse_forgives() -> None:
    drafter = AnpdDrafter()
    drafter.observe([1, 2, 3, 4] * 10)
    for _ in range(60):
        drafter.propose(0.1)
        drafter.judge(0)
    assert drafter.propose(0.3) == []
    for _ in range(1000):
        drafter.propose(0.3)
    assert drafter.propose(0.3) != []


def test_a_longer_context_is_trusted_more_until_it_is_known_better() -> None:
    odds = Odds()
    assert odds.of(1) < odds.of(4) <= odds.of(20)
    for _ in range(50):
        odds.learn(1, held=True)
        odds.learn(4, held=False)
    assert odds.of(1) > 0.7
    assert odds.of(4) < 0.3


def test_requests_learn_from_each_other_through_their_parent() -> None:
    parent = Odds()
    before = Odds(parent).of(2)
    for _ in range(50):
        Odds(parent).learn(2, held=True)
    assert Odds(parent).of(2) > before


def test_step_cost_learns_the_slope() -> None:
    cost = StepCost()
    for tokens in (1, 8, 3, 5) * 20:
        cost.observe(tokens, 0.020 + 0.002 * tokens)
    assert cost.g(1) == pytest.approx(0.002 / 0.022, rel=1e-6)
    assert cost.g(8) == pytest.approx(0.002 / 0.036, rel=1e-6)


def test_step_cost_keeps_its_prior_while_there_is_nothing_to_learn_from() -> None:
    cost = StepCost(prior_g=0.07)
    for _ in range(50):
        cost.observe(4, 0.01)
    assert cost.g(4) == 0.07


@pytest.mark.parametrize(("verify_cost", "least"), [(0.02, 1.45), (0.1, 1.28), (0.3, 1.08), (1.0, 1.0), (2.0, 1.0)])
def test_replaying_real_answers_earns_what_drafting_costs(data_dir: Path, verify_cost: float, least: float) -> None:
    with gzip.open(data_dir / "draft" / "vicuna7b-mtbench.jsonl.gz", "rt") as lines:
        turns = [json.loads(line) for line in lines][:60]
    cost, tokens, odds = 0.0, 0, Odds()
    for turn in turns:
        drafter, answer, at = AnpdDrafter(odds=odds), turn["answer_ids"], 0
        drafter.observe(turn["prompt_ids"])
        while at < len(answer):
            draft = drafter.propose(verify_cost)[: len(answer) - at - 1]
            held = next((i for i, (d, a) in enumerate(zip(draft, answer[at:], strict=False)) if d != a), len(draft))
            drafter.judge(held)
            drafter.observe(answer[at : at + held + 1])
            at += held + 1
            cost += 1 + verify_cost * len(draft)
        tokens += len(answer)
    assert tokens / cost >= least, "speed-up, all steps counted"
