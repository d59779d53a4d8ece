"""Single requests: exact cases that can be worked out by hand. That they agree with the fluid is tested beside the fluid."""

import pytest

from cluster.demand import Demand
from cluster.requests import Rules
from cluster.requests_single import Single

DEMAND = Demand([1.0] * 100, [10.0] * 100, [100.0] * 100, 0.2, 0.5, 1.0)


def single(*requests, streams=1, **rules):
    return Single(requests, DEMAND, Rules(**rules), streams)


def test_the_second_waits_for_the_first():
    requests = single((0.0, 10.0), (1.0, 5.0))
    requests.add("a")
    requests.advance(12.0)
    assert requests.books.completed == 1
    assert requests.books.waits == [(9.0, 1.0)]
    requests.advance(20.0)
    assert requests.books.completed == 2


def test_who_is_cut_off_has_only_the_rest_to_do():
    requests = single((0.0, 10.0))
    requests.add("a")
    requests.advance(6.0)
    requests.lose(["a"])
    requests.add("b")
    requests.advance(10.4)  # 4 s were left, and 0.5 s of computing anew
    assert requests.books.completed == 0
    requests.advance(10.6)
    assert requests.books.completed == 1


def test_who_is_sent_again_has_all_of_it_to_do_and_only_once():
    requests = single((0.0, 10.0), migrates=False, retries=1)
    requests.add("a")
    requests.advance(6.0)
    requests.lose(["a"])
    requests.add("b")
    requests.advance(15.0)
    assert requests.books.completed == 0
    requests.lose(["b"])
    requests.advance(16.0)
    assert (requests.books.retried, requests.books.failed) == (1, 1)


def test_with_notice_it_moves_and_loses_nothing():
    requests = single((0.0, 10.0))
    requests.add("a")
    requests.advance(6.0)
    requests.leave(["a"])
    requests.add("b")
    requests.advance(6.1)
    requests.lose(["a"])
    requests.advance(10.5)
    assert (requests.books.completed, requests.books.migrated, requests.books.cut_off) == (1, 1, 0)


def test_a_machine_that_was_left_lets_its_requests_finish_until_it_goes():
    requests = single((0.0, 10.0), (0.0, 20.0), streams=2, migrates=False)
    requests.add("a")
    requests.advance(6.0)
    requests.leave(["a"])
    requests.advance(11.0)
    assert requests.staying("a") == 1
    requests.lose(["a"])
    assert (requests.books.completed, requests.books.cut_off) == (1, 1)


def test_patience_runs_from_when_it_came():
    requests = single((0.0, 90.0))
    requests.add("a")
    requests.advance(40.0)
    requests.lose(["a"])
    requests.advance(99.0)
    assert requests.books.failed == 0
    requests.advance(101.0)
    assert (requests.books.failed, requests.books.waits) == (1, []), "it had its first token"


def test_load_is_what_came_and_what_waits():
    requests = single((0.0, 10.0), (1.0, 5.0))
    requests.add("a")
    requests.advance(20.0 - 1e-6)
    assert requests.load().tokens_per_s == pytest.approx(10.0)
