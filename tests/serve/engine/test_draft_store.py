"""The store: exact counts while there is room, a bound that always holds, and the old that goes first."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.draft_store import LONGEST, SharedNgrams

answers = st.lists(st.lists(st.integers(0, 4), max_size=40), max_size=8)


@given(answers)
def test_counts_are_those_of_the_answers(texts: list[list[int]]) -> None:
    store, counts = SharedNgrams(capacity=100_000), Counter()
    for text in texts:
        store.learn(text)
        counts.update((tuple(text[end - size : end]), text[end]) for end in range(1, len(text)) for size in range(1, min(LONGEST, end) + 1))
    for context in {context for context, _ in counts}:
        followers = {token: n for (c, token), n in counts.items() if c == context}
        entry = store.find(context)
        assert entry is not None
        assert (entry.count, entry.total) == (max(followers.values()), sum(followers.values()))
        assert followers[entry.best] == entry.count
    assert len(store) == len(counts)


@given(answers, st.integers(2, 60))
def test_the_capacity_holds_at_every_moment(texts: list[list[int]], capacity: int) -> None:
    store = SharedNgrams(capacity)
    for text in texts:
        for end in range(len(text)):
            store.learn(text[end : end + 3])
            assert len(store) <= capacity
            held = [entry for entries in (store._young, store._old) for entry in entries.values()]
            assert sum(entry.size for entry in held) == len(store)


def test_what_is_met_again_outlives_what_is_not() -> None:
    store = SharedNgrams(capacity=40)
    store.learn([900, 901])
    for i in range(100):
        store.learn([1000 + 2 * i, 1001 + 2 * i])
        store.learn([7, 8])
    assert store.find((900,)) is None
    assert store.find((7,)) is not None


def test_what_happens_now_outweighs_what_happened_long_ago() -> None:
    store = SharedNgrams(capacity=1000)
    store.learn([1, 2] * 2000)
    store.learn([1, 3] * 300)
    entry = store.find((1,))
    assert entry is not None
    assert entry.best == 3


def test_a_context_with_countless_followers_stays_small() -> None:
    store = SharedNgrams(capacity=100_000)
    for token in range(2, 5000):
        store.learn([1, token])
    assert len(store) <= 255


def test_a_store_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity: 1"):
        SharedNgrams(capacity=1)
