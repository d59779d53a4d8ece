"""The index of a request's own text finds what a plain search finds."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from serve.engine.draft_text import REACH, WALK, OwnText


@given(st.lists(st.integers(0, 2), min_size=2, max_size=60), st.lists(st.integers(0, 2), max_size=4), st.integers(2, 9))
def test_the_longest_contexts_are_found_wherever_they_end(text: list[int], drafted: list[int], longest: int) -> None:
    own = OwnText(longest)
    own.extend(text)
    tail = (own.tail() + drafted)[-REACH - len(drafted) :]
    length, places = own.match(tail)
    agree = {}
    for place in range(REACH + 1, len(own.tokens) - 1):
        size = 0
        while size < REACH - 1 and own.tokens[place - size] == tail[-1 - size]:
            size += 1
        agree[place] = size
    best = max((min(size, longest) for size in agree.values()), default=0)
    expected = [place for place in sorted(agree, reverse=True) if best >= 2 and min(agree[place], longest) == best]
    assert places == expected[:WALK]
    assert length == ((agree[expected[0]] if best == longest else best) if expected else 0)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(0, 60))
def test_the_usual_follower_is_the_most_frequent(text: list[int], cut: int) -> None:
    own = OwnText(8)
    own.extend(text[:cut])
    own.extend(text[cut:])
    for token in range(3):
        followers = [after for before, after in pairwise(text) if before == token]
        usual = own.usual(token)
        if not followers:
            assert usual is None
        else:
            assert usual is not None
            assert usual[1:] == [max(map(followers.count, followers)), len(followers)]
            assert followers.count(usual[0]) == usual[1]


def test_votes_are_counted_and_the_latest_of_equals_leads() -> None:
    own = OwnText(8)
    own.extend([1, 2, 7, 1, 2, 8, 1, 2])
    length, places = own.match(own.tail())
    assert length == 2
    assert own.follower(places) == (8, 1, 2)


def test_contexts_longer_than_the_reach_are_as_long_as_it() -> None:
    far, longest = OwnText(longest=1000), OwnText(longest=REACH - 1)
    for text in (far, longest):
        text.extend([1, 2, 3, 4] * 50)
    assert far.match(far.tail()) == longest.match(longest.tail())
    assert far.match(far.tail())[0] == REACH - 1
