"""The choice between KV and recompute: its laws, its limits and its reasons."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.moves.handover import FEW_BLOCKS, LEARN_BYTES, MARGIN_S, MAX_STAGES, NUM_STAGES, Link, Rate, Situation, decide, is_last

LONG = Situation(
    num_tokens=2000,
    num_blocks=124,
    num_missing=124,
    block_size=16,
    block_bytes=500_000,
    bytes_per_s=5e8,
    tokens_per_s=1000.0,
    num_leaving=1,
    left_s=30.0,
)
situations = st.builds(
    Situation,
    num_tokens=st.integers(1, 100_000),
    num_blocks=st.integers(0, 6000),
    num_missing=st.integers(0, 6000),
    block_size=st.sampled_from([8, 16, 32]),
    block_bytes=st.integers(1, 10_000_000),
    bytes_per_s=st.floats(1.0, 1e11),
    tokens_per_s=st.floats(1.0, 1e6),
    num_leaving=st.integers(0, 500),
    left_s=st.floats(-10.0, 1000.0) | st.just(float("inf")),
).filter(lambda s: s.num_missing <= s.num_blocks <= s.num_tokens // s.block_size)


@given(situations)
def test_kv_is_chosen_only_if_it_fits_and_pauses_the_stream_for_less(s: Situation) -> None:
    decision = decide(s)
    assert decision.reason
    if decision.how == "kv":
        assert s.num_blocks > 0
        assert s.num_missing * s.block_bytes * s.num_leaving / s.bytes_per_s <= s.left_s - MARGIN_S
        assert s.num_tokens - (s.num_blocks - s.num_missing) * s.block_size > s.block_size


@given(situations, st.floats(0.0, 100.0))
def test_more_time_and_a_faster_link_never_turn_kv_into_recompute(s: Situation, more: float) -> None:
    if decide(s).how == "kv":
        assert decide(replace(s, left_s=s.left_s + more)).how == "kv"
        assert decide(replace(s, bytes_per_s=s.bytes_per_s * (1 + more))).how == "kv"
        assert decide(replace(s, num_leaving=max(1, s.num_leaving // 2))).how == "kv"


@pytest.mark.parametrize(
    ("change", "how", "reason"),
    [
        ({}, "kv", "62.0 MB in 0.15 s while decoding goes on; computing 2000 tokens again would stop it for 2.01 s"),
        ({"num_leaving": 100}, "kv", "62.0 MB in 12.43 s"),
        ({"num_leaving": 300}, "recompute", "deadline: 62.0 MB take 37.23 s, and 29.00 s are left"),
        ({"left_s": 1.0}, "recompute", "deadline: 62.0 MB take 0.15 s, and 0.00 s are left"),
        ({"num_blocks": 0, "num_missing": 0}, "recompute", "it has no full block of KV"),
        ({"tokens_per_s": 1e6}, "recompute", "2000 tokens are computed again in 0.012 s"),
        ({"num_missing": 1}, "kv", "0.5 MB in 0.03 s while decoding goes on; computing 32 tokens again"),
        ({"num_tokens": 1988, "num_missing": 0, "num_blocks": 124}, "recompute", "4 tokens are computed again"),
    ],
)
def test_reasons(change: dict, how: str, reason: str) -> None:
    decision = decide(replace(LONG, **change))
    assert (decision.how, decision.reason[: len(reason)]) == (how, reason)


@given(situations)
def test_always_leaves_only_the_deadline_and_never_leaves_nothing(s: Situation) -> None:
    assert decide(s, "never").how == "recompute"
    always = decide(s, "always")
    assert always.how == "kv" or s.num_blocks == 0 or always.reason.startswith("deadline: ")
    if decide(s).how == "kv":
        assert always == decide(s)


def test_a_short_stage_a_few_blocks_many_stages_or_little_time_make_the_next_stage_the_last() -> None:
    assert is_last(1, 0.1, 99, 60.0)
    assert not is_last(1, 1.0, 99, 60.0)
    assert not is_last(1, 1.0, FEW_BLOCKS + 1, 60.0)
    assert is_last(1, 1.0, FEW_BLOCKS, 60.0)
    assert is_last(MAX_STAGES, 1.0, 99, 60.0)
    assert is_last(1, 1.0, 99, MARGIN_S + 1.9)
    assert not is_last(1, 1.0, 99, float("inf"))
    assert NUM_STAGES >= 2


@given(st.floats(1.0, 1e9), st.lists(st.tuples(st.floats(1.0, 1e9), st.floats(1e-3, 100.0)), min_size=1, max_size=30))
def test_a_rate_stays_within_what_was_seen(guess: float, seen: list[tuple[float, float]]) -> None:
    rate = Rate(guess)
    assert rate.per_s == pytest.approx(guess)
    for amount, seconds in seen:
        rate.observe(amount, seconds)
    rates = [guess, *(amount / seconds for amount, seconds in seen)]
    assert min(rates) * (1 - 1e-6) <= rate.per_s <= max(rates) * (1 + 1e-6)


def test_a_rate_forgets() -> None:
    rate = Rate(1e6)
    for _ in range(60):
        rate.observe(500.0, 1.0)
    assert rate.per_s == pytest.approx(500.0, rel=0.001)


@given(st.integers(1, 20), st.floats(1e9, 1e12), st.lists(st.floats(10.0, 20.0), min_size=1, max_size=10))
def test_a_link_has_the_rate_at_which_all_that_share_it_come(num_transfers: int, per_s: float, times: list[float]) -> None:
    """However many share it: who multiplies by their number again would take it for slower than it is."""
    link, now_s = Link(1.0), 0.0
    for seconds in times:
        for _ in range(num_transfers):
            link.arrived(round(per_s * seconds / num_transfers), now_s, now_s + seconds)
        now_s += seconds + 100.0  # nobody uses it, which says nothing about it
    assert link.per_s == pytest.approx(per_s, rel=0.01)


def test_transfers_that_overlap_are_counted_together() -> None:
    link = Link(1.0)
    for since_s, now_s in ((0.0, 4.0), (2.0, 6.0), (0.0, 8.0), (9.0, 10.0)):  # 32 MB in the 9 seconds that are not idle
        link.arrived(8_000_000, since_s, now_s)
    assert 32e6 / 9.0 < link.per_s < 8e6  # the newest, of which one has the link for itself, count most


def test_a_link_learns_nothing_from_the_delay_of_small_transfers() -> None:
    link = Link(1e9)
    for now_s in range(50):
        link.arrived(LEARN_BYTES // 2, now_s, now_s + 0.9)
    assert link.per_s == pytest.approx(1e9)
