import random
from collections import Counter
from heapq import heappop, heappush
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.intervals import percentile
from serve.engine.request import Request, Sampling
from serve.limits.admission import Admission, Closing, Limits, Refusal, Visit, WrongKey
from serve.limits.keys import ApiKey, digest

SECRET = "sk-this-is-a-secret"
HEADER = f"Bearer {SECRET}"


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Notes:
    def __init__(self) -> None:
        self.refusals: Counter[str] = Counter()
        self.prompts: list[int] = []
        self.gaps: list[tuple[int, float, bool]] = []

    def refused(self, reason: str) -> None:
        self.refusals[reason] += 1

    def admitted(self, num_prompt: int) -> None:
        self.prompts.append(num_prompt)

    def heard(self, num_tokens: int, since_s: float, *, first: bool) -> None:
        self.gaps.append((num_tokens, since_s, first))


def door(*keys: ApiKey, slots: int = 2, **limits: Any) -> tuple[Admission, Clock, Notes]:
    clock, notes = Clock(), Notes()
    return Admission(keys, Limits(**({"max_queue": 4} | limits)), slots=lambda: slots, clock=clock, observer=notes), clock, notes


def asked(num_prompt: int = 10, max_tokens: int = 20, n: int = 1) -> list[Request]:
    sampling = Sampling(max_tokens=max_tokens, seed=1)
    return [Request(id=f"r-{c}", prompt=(1,) * num_prompt, sampling=sampling, choice=c, client="me") for c in range(n)]


def let_in(admission: Admission, header: str | None = None, **request: int) -> Visit:
    visit = admission.enter(header)
    try:
        visit.admit(asked(**request))
    except Refusal:
        visit.leave()
        raise
    return visit


def test_without_keys_everyone_comes_in_their_own_name() -> None:
    admission, _, notes = door()
    requests = asked(n=2)
    assert admission.enter(None).admit(requests) == requests
    assert notes.prompts == [10]  # computed once, however many choices


def test_a_key_is_asked_for_and_its_owner_is_the_tenant() -> None:
    admission, _, notes = door(ApiKey("team", digest(SECRET)))
    (request,) = admission.enter(HEADER).admit(asked())
    assert (request.tenant, request.client) == ("team", "team/me")
    for header in (None, "Bearer sk-wrong", "Basic x"):
        with pytest.raises(WrongKey) as caught:
            admission.enter(header)
        assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
        assert SECRET not in str(caught.value.body())
    assert notes.refusals == {"key": 3}


@pytest.mark.parametrize(
    ("limit", "reason", "kind", "retry_after"),
    [
        ({"requests_per_minute": 2}, "key_requests", "requests", "30"),
        ({"max_streams": 2}, "key_streams", "requests", "1"),
        ({"tokens_per_minute": 60}, "key_tokens", "tokens", "30"),
    ],
)
def test_each_limit_of_a_key_refuses_the_third_and_forgives_it_later(
    limit: dict[str, int], reason: str, kind: str, retry_after: str
) -> None:
    admission, clock, notes = door(ApiKey("team", digest(SECRET), **limit), slots=9)
    visits = [let_in(admission, HEADER) for _ in range(2)]
    with pytest.raises(Refusal) as caught:
        let_in(admission, HEADER)
    refusal = caught.value
    assert (refusal.status, refusal.reason, refusal.type, refusal.headers["retry-after"]) == (429, reason, kind, retry_after)
    assert refusal.code == "rate_limit_exceeded"
    assert notes.refusals == {reason: 1}
    for visit in visits:
        visit.leave()
        visit.leave()  # may be said twice
    clock.now_s += 30.0
    let_in(admission, HEADER)


def test_a_closed_door_turns_newcomers_away_and_those_inside_stay() -> None:
    admission, _, notes = door()
    visit = let_in(admission)
    admission.closed = True
    with pytest.raises(Closing) as caught:
        let_in(admission)
    assert (caught.value.status, caught.value.headers) == (503, {"retry-after": "10"})
    assert admission.enter(None, counts=False), "who only looks may look"
    visit.heard(0, 3)
    assert notes.gaps
    assert len(admission.streams) == 1


def test_a_full_queue_refuses_and_a_free_place_never_does() -> None:
    admission, clock, notes = door(slots=1, max_queue=2, max_ttft_s=1e-9)
    admission.first_token.token_s = admission.first_token.prompt_s = 1.0
    first = let_in(admission)  # nothing is free sooner
    clock.now_s = 1.0
    first.heard(0, 1)
    with pytest.raises(Refusal, match="the first token would take about") as caught:
        let_in(admission)
    assert caught.value.reason == "ttft"
    with pytest.raises(Refusal, match="streams wait for their first token") as caught:
        let_in(admission, n=3)
    assert caught.value.reason == "queue"
    assert not notes.prompts[1:]
    first.leave()
    let_in(admission)
    assert notes.gaps == [(1, 1.0, True)]


def test_a_refused_request_changes_nothing() -> None:
    admission, _, _ = door(ApiKey("team", digest(SECRET), tokens_per_minute=60, max_streams=5), slots=1, max_queue=1)
    let_in(admission, HEADER)
    let_in(admission, HEADER)
    before = list(admission.streams)
    for _ in range(20):
        with pytest.raises(Refusal):
            let_in(admission, HEADER)
    assert list(admission.streams) == before


def embeds(admission: Admission, num_tokens: int, header: str | None = None) -> Visit:
    visit = admission.enter(header)
    try:
        visit.read(num_tokens)
    except Refusal:
        visit.leave()
        raise
    return visit


def test_embeddings_wait_in_a_queue_of_their_own_and_take_no_streams_place() -> None:
    admission, _, notes = door(max_queue=2)
    first, second = embeds(admission, 100), embeds(admission, 100)
    with pytest.raises(Refusal, match="2 requests for embeddings are here already") as caught:
        embeds(admission, 1)
    assert (caught.value.status, caught.value.code, caught.value.headers) == (429, "overloaded", {"retry-after": "1"})
    assert let_in(admission), "streams do not wait for them"
    assert notes.prompts == [100, 100, 10]
    first.was_read()
    first.leave()
    second.leave()  # unread: its client has gone
    assert len(admission.backlog) == 0
    embeds(admission, 1)


def test_embeddings_that_others_would_hold_up_too_long_are_refused_and_who_is_alone_never() -> None:
    admission, clock, notes = door(max_queue=9, max_ttft_s=5.0)
    first = embeds(admission, 1000)
    clock.now_s = 20.0
    first.was_read()  # 0.02 s a token
    first.leave()
    alone = embeds(admission, 10**9)
    embeds(admission, 200)  # which waits for as many tokens of the long one, 4 s
    with pytest.raises(Refusal, match=r"hold these up for about 10\.0 s, and 5 s is the limit") as caught:
        embeds(admission, 300)
    assert (caught.value.reason, caught.value.headers) == ("ttft", {"retry-after": "5"})
    assert notes.refusals == {"ttft": 1}
    alone.leave()
    embeds(admission, 300)


def test_embeddings_count_against_their_keys_limits() -> None:
    key = ApiKey("team", digest(SECRET), tokens_per_minute=600, requests_per_minute=9)
    admission, _, notes = door(key)
    visit = embeds(admission, 400, HEADER)
    with pytest.raises(Refusal) as caught:
        embeds(admission, 300, HEADER)
    assert (caught.value.reason, caught.value.type, caught.value.headers["retry-after"]) == ("key_tokens", "tokens", "10")
    assert len(admission.backlog) == 1
    visit.was_read()
    visit.leave()
    with pytest.raises(Refusal):  # used, not given back
        embeds(admission, 300, HEADER)
    assert notes.prompts == [400]


def test_what_a_key_has_left_is_said_with_refusals_too() -> None:
    admission, _, _ = door(ApiKey("team", digest(SECRET), requests_per_minute=1))
    assert let_in(admission, HEADER).headers()["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(Refusal) as caught:
        admission.enter(HEADER)
    assert caught.value.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert door()[0].enter(None).headers() == {}


@given(st.lists(st.tuples(st.sampled_from(["come", "token", "end", "leave"]), st.integers(0, 9), st.integers(1, 3)), max_size=80))
def test_streams_are_conserved(steps: list[tuple[str, int, int]]) -> None:
    """The live streams are those of visits that came and neither ended nor left; the waiting never exceed the limit."""
    admission, clock, _ = door(ApiKey("team", digest(SECRET), max_streams=6))
    visits: list[tuple[Visit, set[int]]] = []
    for what, number, n in steps:
        clock.now_s += 0.1
        if what == "come":
            try:
                visits.append((let_in(admission, HEADER, n=n), set(range(n))))
            except Refusal:
                continue
        elif visits:
            visit, live = visits[number % len(visits)]
            if what == "leave":
                visit.leave()
                visits.remove((visit, live))
            elif live:
                index = sorted(live)[number % len(live)]
                visit.heard(index, 1)
                if what == "end":
                    visit.ended(index)
                    live.discard(index)
        assert len(admission.streams) == sum(len(live) for _, live in visits)
        assert len(visits) <= 6
    for visit, _ in visits:
        visit.leave()
    assert not admission.streams
    assert all(allowance.num_streams == 0 for allowance in admission._allowances.values())


@pytest.mark.parametrize("honest", [True, False])
def test_under_three_times_the_load_those_let_in_wait_no_longer_than_the_limit_and_the_places_stay_full(honest: bool) -> None:
    """Eight places, 0.02 s a token, Poisson arrivals at three times what that can bear; `honest`: answers use all their tokens."""
    rng, slots, token_s, limit_s = random.Random(1), 8, 0.02, 2.0
    admission, clock, notes = door(slots=slots, max_queue=1000, max_ttft_s=limit_s)
    arrivals, events, queue, running, waits, busy_s = 0.0, [], [], 0, [], 0.0
    number = 0

    def start(visit: Visit, length: int) -> None:
        nonlocal running, number
        running += 1
        for token in range(length):
            number += 1
            heappush(events, (clock.now_s + 0.05 + token * token_s, number, visit, token, length))

    while clock.now_s < 300.0:
        next_s = events[0][0] if events else float("inf")
        if arrivals <= next_s:
            busy_s += running * (arrivals - clock.now_s)
            clock.now_s = arrivals
            arrivals += rng.expovariate(3 * slots / (64 * token_s + 0.05))
            length = 64 if honest else rng.randint(16, 112)
            try:
                visit = let_in(admission, max_tokens=64 if honest else 400)
            except Refusal:
                continue
            (start(visit, length) if running < slots else queue.append((visit, length)))
        else:
            at_s, _, visit, token, length = heappop(events)
            busy_s += running * (at_s - clock.now_s)
            clock.now_s = at_s
            visit.heard(0, 1)
            if token == 0:
                waits.append(clock.now_s - visit.entered_s)
            if token == length - 1:
                visit.ended(0)
                visit.leave()
                running -= 1
                if queue:
                    start(*queue.pop(0))
    settled = waits[len(waits) // 10 :]
    assert percentile(settled, 99) <= limit_s
    assert busy_s / (slots * clock.now_s) > 0.97
    assert notes.refusals["ttft"] > len(waits)
