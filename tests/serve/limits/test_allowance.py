import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serve.limits.allowance import Allowance, Bucket, duration
from serve.limits.keys import ApiKey, digest

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


@given(st.integers(1, 40), st.integers(1, 6), st.lists(st.tuples(GAPS, st.integers(0, 5), st.integers(1, 9), st.booleans()), max_size=80))
def test_all_gateways_together_admit_no_more_than_the_limit(limit: int, gateways: int, asked: list[tuple[float, int, int, bool]]) -> None:
    """Requests, tokens and streams at once, whichever gateway each request meets, over any stretch of time."""
    assume(limit >= gateways)  # serve.limits.keys.read_keys refuses the others
    key = ApiKey("a", digest("a"), requests_per_minute=limit, tokens_per_minute=limit, max_streams=limit)
    shares, now_s, requests, tokens = [Allowance(key, gateways) for _ in range(gateways)], 0.0, [], []
    for gap_s, which, amount, leaves in asked:
        now_s += gap_s
        share = shares[which % gateways]
        if leaves and share.num_streams:
            share.num_streams -= 1
        if not share.is_busy:
            share.num_streams += 1
            if share.take_request(now_s) == 0.0:
                requests.append((now_s, 1))
            if amount <= limit // gateways and share.take_tokens(amount, now_s) == 0.0:
                tokens.append((now_s, amount))
        assert sum(each.num_streams for each in shares) <= limit
    for taken in (requests, tokens):
        for i, (start_s, _) in enumerate(taken):
            assert sum(amount for _, amount in taken[i:]) <= limit * (1 + (taken[-1][0] - start_s) / 60.0) + 1e-6


@given(st.integers(1, 40), st.integers(1, 6))
def test_no_gateway_has_a_share_that_lets_nobody_in(limit: int, gateways: int) -> None:
    assume(limit >= gateways)
    key = ApiKey("a", digest("a"), requests_per_minute=limit, tokens_per_minute=limit, max_streams=limit)
    for share in (Allowance(key, gateways) for _ in range(gateways)):
        assert not share.is_busy
        assert share.take_request(0.0) == share.take_tokens(1, 0.0) == 0.0


def test_what_is_left_is_said_as_openai_says_it() -> None:
    allowance = Allowance(ApiKey("a", digest("a"), requests_per_minute=60, tokens_per_minute=600), num_gateways=2)
    allowance.take_request(0.0)
    allowance.take_tokens(250, 0.0)
    assert allowance.headers(1.0) == {
        "x-ratelimit-limit-requests": "30",
        "x-ratelimit-remaining-requests": "29",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "300",
        "x-ratelimit-remaining-tokens": "55",
        "x-ratelimit-reset-tokens": "49s",
    }
    allowance.settle_tokens(250, 900)  # more than it has: a debt
    assert allowance.headers(1.0)["x-ratelimit-remaining-tokens"] == "0"
    assert allowance.headers(1.0)["x-ratelimit-reset-tokens"] == "2m59s"
    assert list(Allowance(ApiKey("b", digest("b"), tokens_per_minute=9)).headers(0.0).values()) == ["9", "9", "0s"]
    assert Allowance(ApiKey("c", digest("c"), max_streams=9)).headers(0.0) == {}


@given(st.floats(0.0, 1e5))
def test_a_duration_is_no_shorter_than_the_time_and_reads_back(seconds: float) -> None:
    minutes, _, rest = duration(seconds).rpartition("m") if not duration(seconds).endswith("ms") else ("", "", duration(seconds))
    read = int(minutes or 0) * 60 + (float(rest[:-2]) / 1000 if rest.endswith("ms") else float(rest.removesuffix("s")))
    assert seconds - 1e-5 <= read <= seconds + 0.0011


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
