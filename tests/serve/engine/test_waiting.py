"""The waiting line is in order, whatever comes, goes and changes its key; and its cost does not grow with its length."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.fairness import VirtualTokenCounter
from serve.engine.policy import FirstCome, Policy, ShortestPredicted, VirtualTime, policy_named
from serve.engine.request import Request, Sampling
from serve.engine.sequence import Sequence
from serve.engine.text import TextStream
from serve.engine.toy import ToyTokenizer
from serve.engine.waiting import WaitingLine


def make_sequence(arrival: int, client: str = "", priority: int = 0, emitted: tuple[int, ...] = ()) -> Sequence:
    sampling = Sampling(max_tokens=50, seed=0)
    request = Request(id=str(arrival), prompt=(1, 2), sampling=sampling, client=client, priority=priority, emitted=emitted)
    text = TextStream(ToyTokenizer(), request.prompt)
    return Sequence(request=request, arrival=arrival, limit=52, stop_ids=frozenset({0}), text=text, drafter=None, root=b"")


def plain_place(policy: Policy, sequence: Sequence) -> tuple[float, ...]:
    """The definition."""
    if sequence.started is not None:
        return -sequence.request.priority, 0, 0.0, sequence.started
    if sequence.request.emitted:
        return -sequence.request.priority, 1, 0.0, sequence.arrival
    return -sequence.request.priority, 2, policy.key(sequence), sequence.arrival


class Line:
    """A line beside a plain list that is sorted anew each time."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.line = policy, WaitingLine(policy)
        self.plain: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_arrived = self.num_started = 0

    def arrive(self, client: int, priority: int) -> None:
        emitted = (5,) if client == 5 else ()  # on its way from another engine
        sequence = make_sequence(self.num_arrived, "abcdef"[client], priority, emitted)
        self.num_arrived += 1
        self.policy.arrive(sequence)
        self.add(sequence)

    def add(self, sequence: Sequence) -> None:
        self.line.add(sequence)
        self.plain.append(sequence)

    def start(self, num_outputs: int, _: int) -> None:
        for moved in self.policy.moved():
            self.line.move(moved)
        if not self.plain:
            return
        sequence = self.line.first()
        assert sequence is min(self.plain, key=lambda s: plain_place(self.policy, s))
        self.line.remove(sequence)
        self.plain.remove(sequence)
        self.running.append(sequence)
        if sequence.started is None:
            sequence.started, self.num_started = self.num_started, self.num_started + 1
            self.policy.start(sequence, 2)
        self.policy.serve(sequence, num_outputs)

    def preempt(self, number: int, _: int) -> None:
        if self.running:
            self.add(self.running.pop(number % len(self.running)))

    def finish(self, number: int, num_tokens: int) -> None:
        if self.running:
            sequence = self.running.pop(number % len(self.running))
            for _ in range(num_tokens):
                sequence.append(1)
            sequence.finish_reason = "stop"
            self.policy.end(sequence)

    def cancel(self, number: int, _: int) -> None:
        if self.plain:
            sequence = self.plain.pop(number % len(self.plain))
            self.line.remove(sequence)
            self.policy.end(sequence)


EVENTS: dict[str, Callable[[Line, int, int], None]] = {
    "arrive": Line.arrive,
    "start": Line.start,
    "preempt": Line.preempt,
    "finish": Line.finish,
    "cancel": Line.cancel,
}


@pytest.mark.parametrize("policy", ["fcfs", "fair", "shortest"])
@given(events=st.lists(st.tuples(st.sampled_from([*EVENTS, "arrive", "start"]), st.integers(0, 5), st.integers(0, 2)), max_size=120))
def test_the_first_is_the_first_of_a_sorted_list(policy: str, events: list[tuple[str, int, int]]) -> None:
    both = Line(policy_named(policy))
    for name, one, other in events:
        EVENTS[name](both, one, other)
        both.line.check()
        assert len(both.line) == len(both.plain)
        assert list(both.line) == sorted(both.plain, key=lambda s: plain_place(both.policy, s))


class Counted:
    """How many lines of the waiting line, the policies and the counter run."""

    FILES = tuple(sys.modules[kind.__module__].__file__ for kind in (WaitingLine, FirstCome, VirtualTokenCounter))

    def __enter__(self) -> Counter[str]:
        self.lines: Counter[str] = Counter()
        sys.settrace(self._trace)
        return self.lines

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in self.FILES:
            return None
        self.lines[frame.f_code.co_name] += event == "line"
        return self._trace

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)


@pytest.mark.parametrize("clients", [1, 1_000_000])
@pytest.mark.parametrize("kind", [FirstCome, VirtualTime, ShortestPredicted])
def test_what_an_event_costs_does_not_grow_with_the_line(kind: type, clients: int) -> None:
    def work(length: int) -> int:
        policy = kind()
        line = WaitingLine(policy)

        def come(number: int) -> None:
            sequence = make_sequence(number, client=str(number % clients), priority=number % 3)
            policy.arrive(sequence)
            line.add(sequence)

        for number in range(length):
            come(number)
        cancelled = list(line)[::-1][:20]
        with Counted() as lines:
            for number in range(20):
                come(length + number)
                for moved in policy.moved():
                    line.move(moved)
                sequence = line.first()
                line.remove(sequence)
                sequence.started = number
                policy.start(sequence, 2)
                policy.serve(sequence, 1)
                sequence.append(1)
                sequence.finish_reason = "stop"
                policy.end(sequence)
                line.remove(cancelled[number])
                policy.end(cancelled[number])
        return lines.total()

    few, many = work(100), work(3_000)
    assert many < 3 * few


def test_a_line_that_many_pass_through_keeps_nothing_of_them() -> None:
    policy = VirtualTime()
    line = WaitingLine(policy)
    patient = make_sequence(0, client="patient")
    policy.arrive(patient)
    line.add(patient)
    for number in range(1, 2_000):
        sequence = make_sequence(number, client=str(number), priority=-1)  # never first, so never looked at
        policy.arrive(sequence)
        line.add(sequence)
        line.remove(sequence)
        policy.end(sequence)
    assert len(line._heap) < 100
    assert len(policy.counter._heap) < 100
    assert list(line) == [patient]
    assert line.first() is patient
