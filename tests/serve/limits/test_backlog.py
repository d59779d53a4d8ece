"""Embeddings in the making: who waits for how much of whom."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.limits.backlog import Backlog

SIZES = st.lists(st.integers(1, 1000), max_size=20)


@given(SIZES, st.integers(1, 1000), st.integers(1, 1000))
def test_no_request_waits_for_more_of_another_than_its_own_length(sizes: list[int], mine: int, more: int) -> None:
    backlog = Backlog()
    backlog.token_s = 0.5
    for size in sizes:
        backlog.add(size, now_s=0.0)
    assert backlog.delay_s(mine) <= len(sizes) * mine * 0.5
    assert backlog.delay_s(mine) <= backlog.delay_s(mine + more) <= sum(sizes) * 0.5


@given(SIZES)
def test_what_is_over_holds_nobody_up(sizes: list[int]) -> None:
    backlog = Backlog()
    readings = [backlog.add(size, now_s=0.0) for size in sizes]
    assert len(backlog) == len(sizes)
    for index, reading in enumerate(readings):
        if index % 2:
            backlog.read(reading, now_s=1.0 + index)
        backlog.remove(reading)  # may be said twice
    assert len(backlog) == 0
    assert backlog.delay_s(1000) == 0.0


def test_the_time_a_token_takes_is_learnt_from_requests_that_shared_it() -> None:
    """Two requests of 100 tokens take turns at a second a token: each takes 200 s, and neither thinks that a token takes two."""
    backlog = Backlog()
    assert backlog.delay_s(100) == 0.0
    backlog.read(backlog.add(100, now_s=0.0), now_s=100.0)
    for _ in range(50):
        first, second = backlog.add(100, now_s=0.0), backlog.add(100, now_s=0.0)
        assert (first.ahead, second.ahead) == (0, 100)
        backlog.remove(first)
        backlog.read(second, now_s=200.0)
    assert backlog.token_s == pytest.approx(1.0)
