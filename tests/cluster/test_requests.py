"""The books balance, whatever happens to the machines; and the fluid agrees with single requests on a small case."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.demand import Replica, demand, single_requests
from cluster.requests import Books, Fluid, Rules
from cluster.requests_single import Single
from cluster.traces import LoadTrace

CHANCE = np.random.default_rng(1)
TRACE = LoadTrace(np.sort(CHANCE.uniform(0, 1200, 2400)), np.full(2400, 500.0), CHANCE.integers(50, 400, 2400) * 1.0)
REPLICA = Replica(streams=8, tokens_per_s=160.0)
DEMAND = demand(TRACE, REPLICA, seconds=1800, scale=1.0)
EVERY = single_requests(TRACE, REPLICA, seconds=1800, scale=1.0)


def made(kind, rules):
    return Fluid(DEMAND, rules, REPLICA.streams) if kind == "fluid" else Single(EVERY, DEMAND, rules, REPLICA.streams)


def balance(requests):
    return requests.books.arrived - requests.books.completed - requests.books.failed - requests.in_flight()


events = st.lists(
    st.tuples(st.floats(0.5, 120), st.sampled_from(["add", "leave", "lose"]), st.integers(0, 5), st.integers(1, 3)), max_size=25
)


@pytest.mark.parametrize("kind", ["fluid", "single"])
@given(events=events, migrates=st.booleans(), retries=st.integers(0, 1))
@settings(max_examples=40, deadline=None)
def test_what_came_is_served_waits_or_failed(kind, events, migrates, retries):
    requests, now_s, number = made(kind, Rules(migrates=migrates, retries=retries)), 0.0, 0
    for span_s, what, first, count in events:
        names = [f"m{first + i}" for i in range(count)]
        if what == "add":
            for _ in range(count):
                requests.add(f"m{number}")
                number += 1
        elif what == "lose":
            requests.lose(names)
        else:
            requests.leave(names)
        now_s = min(now_s + span_s, 1700)
        requests.advance(now_s)
        assert balance(requests) == pytest.approx(0, abs=1e-6)
        assert requests.in_flight() >= -1e-9
        books = requests.books
        assert books.failed == pytest.approx(books.timed_out + books.cut_off - books.resumed - books.retried, abs=1e-6)


def run(kind, rules, outage=True):
    """20 machines; at 600 s 12 die without notice, at 900 s 4 with; replacements 183 s later."""
    requests = made(kind, rules)
    for number in range(20):
        requests.add(f"m{number}")
    requests.advance(600)
    if outage:
        requests.lose([f"m{number}" for number in range(12)])
        requests.advance(783)
        for number in range(12):
            requests.add(f"n{number}")
        requests.advance(900)
        requests.leave([f"m{number}" for number in range(12, 16)])
        requests.advance(1020)
        requests.lose([f"m{number}" for number in range(12, 16)])
    requests.advance(1800)
    return requests


@pytest.mark.parametrize("rules", [Rules(), Rules(migrates=False), Rules(migrates=False, retries=0)])
def test_the_fluid_agrees_with_single_requests(rules):
    fluid, single = run("fluid", rules), run("single", rules)
    came = single.books.arrived
    assert fluid.books.arrived == pytest.approx(came, rel=0.01)
    for name in ("completed", "failed", "cut_off", "resumed", "retried", "migrated", "delayed"):
        assert getattr(fluid.books, name) == pytest.approx(getattr(single.books, name), abs=0.02 * came), name
    assert fluid.books.wait_quantiles(0.5, 0.99) == pytest.approx(single.books.wait_quantiles(0.5, 0.99), abs=12)


def test_without_trouble_everyone_is_served_at_once():
    for kind in ("fluid", "single"):
        requests = run(kind, Rules(), outage=False)
        assert requests.books.failed == 0
        assert requests.books.wait_quantiles(0.99) == [0.0]


def test_nobody_serves_everybody_fails_after_the_timeout():
    for kind in ("fluid", "single"):
        requests = made(kind, Rules(timeout_s=50))
        requests.advance(1000)
        assert requests.books.completed == 0
        assert requests.books.failed == pytest.approx(requests.books.arrived - requests.in_flight())
        assert requests.in_flight() == pytest.approx(2 * 50, rel=0.5)


@pytest.mark.parametrize("kind", ["fluid", "single"])
def test_patience_is_counted_once_from_when_a_request_came(kind):
    """A machine that serves for a moment every 60 s: whoever has no place 100 s after it came has failed, however often it had one."""
    requests = made(kind, Rules(timeout_s=100))
    for number in range(12):
        requests.add(f"m{number}")
    requests.advance(600)
    requests.lose([f"m{number}" for number in range(12)])  # those that are cut off here have been waiting and served for some seconds
    cut = requests.books.cut_off
    requests.advance(660)
    requests.add("short")
    requests.advance(661)
    requests.lose(["short"])
    before = requests.books.failed
    requests.advance(700)
    assert cut > 8
    assert requests.books.failed - before > 0.95 * (cut - REPLICA.streams), "they came before 600 s, and it is 700 s"
    assert before < 0.2 * cut


@pytest.mark.parametrize("kind", ["fluid", "single"])
def test_who_fails_without_a_token_counts_in_the_waiting_times(kind):
    requests = made(kind, Rules(timeout_s=50))
    requests.advance(1000)
    assert requests.books.wait_quantiles(0.01, 0.99) == [50.0, 50.0]


@pytest.mark.parametrize("kind", ["fluid", "single"])
def test_a_machine_that_retires_serves_what_it_has_and_cuts_off_the_rest(kind):
    """With nobody else to go to, what is not done when it goes has lost its place; until then it holds its own, and no other machine's."""
    requests = made(kind, Rules(migrates=False))
    requests.add("a")
    requests.advance(300)
    held = requests.staying("a")
    assert held == 0
    requests.leave(["a"])
    held = requests.staying("a")
    assert held == pytest.approx(REPLICA.streams, abs=0.5)
    requests.advance(305)
    assert 0 < requests.staying("a") < held
    left, before = requests.staying("a"), requests.books.cut_off
    requests.lose(["a"])
    assert requests.staying("a") == 0
    assert requests.books.cut_off - before == pytest.approx(left)


def test_who_was_cut_off_goes_on_or_begins_again_or_fails():
    ours, retried, given_up = (run("fluid", rules).books for rules in (Rules(), Rules(migrates=False), Rules(migrates=False, retries=0)))
    assert ours.resumed == pytest.approx(ours.cut_off)
    assert retried.retried > 0
    assert given_up.failed > ours.failed


def test_wait_quantiles():
    books = Books()
    books.started(0.0, 90.0, 10.0)
    books.started(5.0, 9.0, 10.0)
    books.started(40.0, 1.0, 10.0)
    assert books.wait_quantiles(0.5, 0.95, 0.999) == [0.0, 5.0, 40.0]
    assert books.delayed == 1.0
