"""Thrift: what pays goes on, what does not rests for longer and longer, and nothing of the text is lost over it."""

from __future__ import annotations

from serve.engine.draft_thrift import Thrift, ThriftyDrafter


class Inner:
    """Always drafts two tokens; remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.judged: list[int] = []
        self.recycled: list[tuple[list[int], list[int]]] = []
        self.num_proposed = 0

    def observe(self, tokens: list[int]) -> None:
        self.seen += tokens

    def propose(self, verify_cost: float) -> list[int]:
        self.num_proposed += 1
        return [1, 2]

    def judge(self, num_accepted: int) -> None:
        self.judged.append(num_accepted)

    def recycle(self, tokens: list[int], successors: list[int]) -> None:
        self.recycled.append((tokens, successors))


def live(steps: int, num_accepted: int, verify_cost: float, tokens_per_s: float = 0.0) -> tuple[Inner, ThriftyDrafter]:
    inner = Inner()
    drafter = ThriftyDrafter(inner, Thrift(tokens_per_s))
    for i in range(steps):
        drafter.observe([i])
        if drafter.propose(verify_cost):
            drafter.judge(num_accepted)
    return inner, drafter


def test_what_pays_goes_on() -> None:
    inner, _ = live(500, num_accepted=1, verify_cost=0.1)
    assert inner.num_proposed == 500
    assert inner.seen == list(range(500))
    assert inner.judged == [1] * 500


def test_what_does_not_pay_rests_longer_and_longer_but_is_tried_again() -> None:
    inner, _ = live(2000, num_accepted=0, verify_cost=0.1)
    assert 30 < inner.num_proposed < 200
    assert inner.seen == list(range(inner.seen[-1] + 1))  # in order, nothing left out


def test_thinking_alone_can_be_too_dear() -> None:
    inner, _ = live(2000, num_accepted=1, verify_cost=0.0, tokens_per_s=1e9)
    assert inner.num_proposed < 200


def test_a_request_that_begins_to_repeat_is_noticed() -> None:
    inner, drafter = live(2000, num_accepted=0, verify_cost=0.1)
    before = inner.num_proposed
    for _ in range(600):
        drafter.observe([7])
        if drafter.propose(0.1):
            drafter.judge(2)
    assert inner.num_proposed - before > 300


def test_later_requests_begin_with_the_experience_of_the_earlier() -> None:
    thrift = Thrift()
    counts = []
    for _ in range(60):
        inner = Inner()
        drafter = ThriftyDrafter(inner, thrift)
        for _ in range(60):
            drafter.propose(0.2)
        counts.append(inner.num_proposed)
    assert counts[-1] < counts[0]


def test_the_price_follows_the_steps() -> None:
    thrift = Thrift()
    for _ in range(100):
        thrift.price(500.0)
    assert 499.0 < thrift.tokens_per_s <= 500.0


def test_what_the_model_said_reaches_the_inner_drafter_even_while_it_sleeps() -> None:
    inner, drafter = live(200, num_accepted=0, verify_cost=0.5)
    assert not drafter.propose(0.5)
    drafter.recycle([1], [2])
    assert inner.recycled == [([1], [2])]


def resting(verify_cost: float, thrift: Thrift) -> list[list[int]]:
    """What is drafted for a text that goes round, while nobody thinks."""
    inner = Inner()
    drafter, drafts = ThriftyDrafter(inner, thrift), []
    drafter.observe([1, 2, 3, 4, 5])
    for i in range(40):
        drafter.observe([i % 5 + 1])
        drafts.append(drafter.propose(verify_cost))
        if drafts[-1]:
            drafter.judge(len(drafts[-1]))
    assert inner.num_proposed == 0
    return drafts


def test_a_long_repeat_is_followed_while_nobody_thinks() -> None:
    drafts = resting(0.1, Thrift(resting=True))
    assert drafts[:9] == [[]] * 9
    assert len(drafts[-1]) == 16
    assert drafts[-1][:6] == [1, 2, 3, 4, 5, 1]
    assert not any(resting(0.95, Thrift(resting=True)))  # it would have to be surer than that


def test_a_repeat_that_deceives_is_believed_less() -> None:
    thrift = Thrift(resting=True)
    for _ in range(20):
        drafter = ThriftyDrafter(Inner(), thrift)
        drafter.observe([1, 2, 3, 4] * 5)
        if drafter.propose(0.1):
            drafter.judge(0)
    assert thrift.echoes.chance(13) < 0.6


def test_the_inner_drafter_sees_what_came_while_it_slept_when_it_wakes() -> None:
    thrift = Thrift(resting=True)
    inner = Inner()
    drafter = ThriftyDrafter(inner, thrift)
    for token in range(50):
        drafter.observe([token])
        drafter.propose(0.1)
    assert inner.seen == []
    thrift.resting = False
    assert drafter.propose(0.1) == [1, 2]
    assert inner.seen == list(range(50))
