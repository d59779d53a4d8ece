"""Echoes: a repeat is followed where it leads, never before it has proved itself, and whatever it says comes from the text."""

from __future__ import annotations

import doctest
import random

from hypothesis import given
from hypothesis import strategies as st

from serve.engine import draft_echo
from serve.engine.draft_echo import SURE, Echo, EchoOdds


def test_doctests() -> None:
    assert doctest.testmod(draft_echo).failed == 0


@given(st.lists(st.integers(0, 3), max_size=80), st.integers(0, 20))
def test_what_it_foretells_follows_its_last_tokens_somewhere(text, num_tokens):
    echo = Echo()
    echo.observe(text)
    ahead = echo.ahead(num_tokens)
    assert echo.tokens == text
    assert len(ahead) in (0, num_tokens)
    if ahead:  # an earlier place with the same three tokens, and the same `run` before them
        length = 3 + echo.run
        whole = text + ahead
        end = [i for i in range(length, len(text)) if text[i - length : i] == text[-length:]]
        assert any(whole[i : i + num_tokens] == ahead for i in end)


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), max_size=60))
def test_pieces_are_the_whole(first, second):
    whole, pieces = Echo(), Echo()
    whole.observe(first + second)
    pieces.observe(first)
    pieces.observe(second)
    assert (whole.run, whole.ahead(9)) == (pieces.run, pieces.ahead(9))


def test_a_passage_copied_after_another_text_is_sure_after_some_tokens() -> None:
    rng = random.Random(0)
    passage, between = rng.sample(range(1000), 40), rng.sample(range(1000, 2000), 40)
    echo = Echo()
    echo.observe(passage + between)
    assert echo.run == 0
    echo.observe(passage[: 3 + SURE])
    assert echo.run == SURE
    assert echo.ahead(10) == passage[3 + SURE : 13 + SURE]
    echo.observe([5000])
    assert (echo.run, echo.ahead(3)) == (0, [])


def test_the_odds_are_learnt_apart_by_length() -> None:
    odds = EchoOdds()
    for _ in range(300):
        odds.learn(10, num_held=0, num_drafted=5)
        odds.learn(60, num_held=5, num_drafted=5)
    assert odds.chance(10) < 0.1
    assert odds.chance(60) > 0.95
    assert 0.5 < odds.chance(20) < 0.95
