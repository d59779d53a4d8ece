"""Plain ANPD: the n-grams are those of the text, and nothing else."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.draft import AnpdDrafter

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


def test_drafts_are_cut_at_the_longest_and_where_nothing_can_pay() -> None:
    drafter = AnpdDrafter()
    drafter.observe([1, 2, 3, 4] * 10)
    assert drafter.propose(0.5) == [1, 2, 3, 4, 1, 2, 3]
    assert drafter.propose(1.0) == []


def test_what_the_model_said_of_rejected_tokens_teaches_it_nothing() -> None:
    drafter = AnpdDrafter()
    drafter.observe([1, 2])
    drafter.judge(0)
    drafter.recycle([2], [5])
    assert drafter.propose(0.0) == []
