"""Drafters by tenant: what one learns, another never sees; and the forgotten make room."""

from __future__ import annotations

import pytest

from serve.engine.draft import AnpdDrafter, Drafter
from serve.engine.draft_thrift import ThriftyDrafter
from serve.engine.drafters import MOST_TENANTS, Drafters


def guess(drafter: Drafter | None) -> list[int]:
    assert drafter is not None
    drafter.observe([9, 1, 2])
    return drafter.propose(0.02)[:1]


@pytest.mark.parametrize(("kind", "expected"), [("ngram", ThriftyDrafter), ("anpd", AnpdDrafter), ("off", type(None))])
def test_the_kind_is_the_configured_one(kind: str, expected: type) -> None:
    assert isinstance(Drafters(kind, 8, 16, 1000).of(""), expected)


@pytest.mark.parametrize("kind", ["ngram", "anpd"])
def test_every_drafter_keeps_the_whole_protocol(kind: str) -> None:
    drafter = Drafters(kind, 8, 16, 1000).of("")
    assert [name for name in vars(Drafter) if not name.startswith("_") and not callable(getattr(drafter, name, None))] == []


def test_answers_teach_their_own_tenant_only() -> None:
    drafters = Drafters("ngram", 8, 16, 1000)
    drafters.learn("one", [1, 2, 3] * 4)
    assert guess(drafters.of("one")) == [3]
    assert guess(drafters.of("other")) == []


def test_without_a_store_answers_teach_nothing_but_the_odds_stay() -> None:
    drafters = Drafters("ngram", 8, 16, 0)
    drafters.learn("one", [1, 2, 3] * 4)
    assert guess(drafters.of("one")) == []
    assert drafters._learnt("one").odds is drafters._learnt("one").odds is not drafters._learnt("other").odds


def test_the_tenant_not_heard_of_for_longest_is_forgotten() -> None:
    drafters = Drafters("ngram", 8, 16, 1000)
    for i in range(MOST_TENANTS):
        drafters.learn(str(i), [1, 2, 3] * 4)
    assert guess(drafters.of("0")) == [3]
    drafters.learn("one more", [1, 2, 3])
    assert guess(drafters.of("0")) == [3]
    assert guess(drafters.of("1")) == []


def test_recycled_successors_reach_the_tenants_later_requests() -> None:
    drafters = Drafters("ngram", 8, 16, 0)
    first = drafters.of("one")
    assert isinstance(first, ThriftyDrafter)
    first.recycle([2], [5])
    assert guess(drafters.of("one")) == [5]
    assert guess(drafters.of("other")) == []


@pytest.mark.parametrize(("kind", "most"), [("ngram", 20), ("anpd", 100), ("off", 0)])
def test_drafts_that_do_not_pay_rest_but_the_reference_does_not(kind: str, most: int) -> None:
    drafters, num_awake = Drafters(kind, 5, 7, 0), 0
    for step in range(2000):
        awake = drafters.awake(16)
        num_awake += awake and step >= 1900
        drafters.worth.observe(16, 16, 0.003 if awake else 0.002)
    assert num_awake <= most
    assert num_awake == most or kind == "ngram"
