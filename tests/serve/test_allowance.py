import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.allowance import Allowance, Bucket
from serve.keys import ApiKey, digest

GAPS = st.floats(0.0, 30.0)
AMOUNTS = st.integers(1, 200)


@given(st.integers(1, 500), st.lists(st.tuples(GAPS, AMOUNTS), max_size=60))
def test_no_stretch_of_time_gives_more_than_a_minutes_worth_and_its_refill(per_minute: int, asked: list[tuple[float, int]]) -> None:
    bucket, now_s, taken = Bucket(float(per_minute)), 100.0, []
    for gap_s, amount in asked:
        now_s += gap_s
        wait_s = bucket.take(amount, now_s)
        if wait_s == 0.0:
            taken.append((now_s, amount))
        elif amount <= per_minute:
            assert bucket.take(amount, now_s + wait_s * 1.001) == 0.0  # it had said when, and not too early
            taken.append((now_s := now_s + wait_s * 1.001, amount))
    for i, (start_s, _) in enumerate(taken):
        total = 0
        for at_s, amount in taken[i:]:
            total += amount
            assert total <= per_minute * (1 + (at_s - start_s) / 60.0) + 1e-6


@given(st.integers(1, 300), st.lists(st.tuples(GAPS, AMOUNTS, AMOUNTS), max_size=40))
def test_tokens_used_never_exceed_the_limit_but_by_requests_larger_than_it(limit: int, asked: list[tuple[float, int, int]]) -> None:
    allowance, now_s, used = Allowance(ApiKey("a", digest("a"), tokens_per_minute=limit)), 0.0, []
    for gap_s, most, share in asked:
        now_s += gap_s
        if allowance.take_tokens(most, now_s) == 0.0:
            spent = min(most, share)
            allowance.settle_tokens(most, spent)
            used.append((now_s, spent))
    for i, (start_s, _) in enumerate(used):
        inside = used[i:]
        excess = sum(max(0, spent - limit) for _, spent in inside)
        assert sum(spent for _, spent in inside) <= limit * (1 + (inside[-1][0] - start_s) / 60.0) + excess + 1e-6


def test_a_request_larger_than_a_minute_waits_for_a_full_bucket_and_owes_the_rest() -> None:
    allowance = Allowance(ApiKey("a", digest("a"), tokens_per_minute=60))
    assert allowance.take_tokens(600, 0.0) == 0.0
    assert allowance.take_tokens(1, 0.0) == pytest.approx(1.0)
    allowance.settle_tokens(600, 180)
    assert allowance.take_tokens(1, 0.0) == pytest.approx(121.0)  # 120 owed, and one


def test_unused_tokens_come_back_and_gateways_share_limits() -> None:
    allowance = Allowance(ApiKey("a", digest("a"), requests_per_minute=4, tokens_per_minute=100, max_streams=3), num_gateways=2)
    assert [allowance.take_request(0.0) > 0 for _ in range(3)] == [False, False, True]
    assert allowance.take_tokens(50, 0.0) == 0.0
    assert allowance.take_tokens(10, 0.0) > 0.0
    allowance.settle_tokens(50, 30)
    assert allowance.take_tokens(20, 0.0) == 0.0
    assert not allowance.is_busy
    allowance.num_streams = 1
    assert allowance.is_busy  # half of three allows one, not two


def test_no_limit_refuses_nothing() -> None:
    allowance = Allowance(ApiKey("a", digest("a")))
    for _ in range(1000):
        assert allowance.take_request(0.0) == allowance.take_tokens(10**9, 0.0) == 0.0
        allowance.num_streams += 1
    assert not allowance.is_busy
