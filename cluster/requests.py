"""Requests on machines that come and go, as a fluid: how many are served, wait, move, start again or fail.

Promise: nothing is lost from the books: requests that came = completed + failed + in flight, at every moment. Both models, this fluid for
fleets and single requests for small runs (cluster/requests_single.py), keep the same books under the same rules.
Patience is counted once, from when a request came: one without a place after `timeout_s` fails, however often it had one.
Price: a few microseconds per 10 s of simulated time while nobody waits. A place serves one request at full speed; a request holds it for
its service time, taken as exponential with the mean of its minute, so what remains of a request that lost its machine is as long again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Protocol

from cluster.autoscale import Load
from cluster.demand import BIN_S, Demand
from cluster.served import Part, Served
from cluster.settings import settings

__all__ = ["Books", "Fluid", "Requests", "Rules"]


@settings
class Rules:
    """What happens to a request whose machine goes away."""

    timeout_s: float = 100.0
    """A request that has no place so long after it came fails; counted once, through all interruptions."""
    migrates: bool = True
    """Whether live requests leave a machine that was given notice, and go on from their record after one that died without."""
    heeds_notice: bool = True
    """Whether a machine that was given notice counts as lost for the policy at once, and is drained before it goes."""
    retries: int = 1
    """Without migration: how often a client sends a request again that was cut off."""
    delayed_s: float = 10.0
    """A request counts as delayed when its first token, or its next one after an interruption, took longer."""


@dataclass(slots=True)
class Books:
    """What became of the requests; fluid amounts, or whole numbers for single ones."""

    arrived: float = 0.0
    completed: float = 0.0
    failed: float = 0.0
    """Waited too long, or were cut off more often than the client tries."""
    timed_out: float = 0.0
    """Of the failed: those that waited too long."""
    cut_off: float = 0.0
    """Requests (counted once per time) whose machine died under them."""
    resumed: float = 0.0
    """Of the cut-off: went on from their record."""
    retried: float = 0.0
    """Of the cut-off: sent again by the client, from the beginning."""
    migrated: float = 0.0
    """Left a machine that was given notice, without a pause worth mention."""
    delayed: float = 0.0
    waits: list[tuple[float, float]] = field(default_factory=list)
    """(seconds until a place was free, requests), for those that had to wait; for those that got none, all their patience."""
    served_at_once: float = 0.0

    def started(self, wait_s: float, amount: float, delayed_s: float) -> None:
        """A request got its first place."""
        if wait_s <= 0:
            self.served_at_once += amount
        else:
            self.waits.append((wait_s, amount))
            self.delayed += amount if wait_s > delayed_s else 0.0

    def gave_up(self, amount: float, timeout_s: float, *, first: bool) -> None:
        """Their patience is over; those that wait for the `first` time have seen no token."""
        self.failed += amount
        self.timed_out += amount
        if first:
            self.waits.append((timeout_s, amount))

    def wait_quantiles(self, *shares: float) -> list[float]:
        """Seconds that these shares of the requests waited at most for their first place, failed ones included."""
        waits = sorted(self.waits)
        total = self.served_at_once + sum(amount for _, amount in waits)
        found = []
        for share in shares:
            seen, at = self.served_at_once, 0.0
            for wait_s, amount in waits:
                if seen >= share * total:
                    break
                seen, at = seen + amount, wait_s
            found.append(at)
        return found


class Requests(Protocol):
    """The requests of one simulated service."""

    books: Books

    def advance(self, until_s: float) -> None:
        """Let time pass with the machines as they are."""

    def add(self, machine: str) -> None:
        """This machine serves from now on."""

    def leave(self, machines: Iterable[str]) -> None:
        """These take no new requests; theirs leave for free places, or stay until done."""

    def staying(self, machine: str) -> float:
        """Requests that are still on a machine that was left."""

    def lose(self, machines: Iterable[str]) -> None:
        """These are gone, and with them what they served."""

    def load(self) -> Load:
        """What a service sees of itself, since the last call."""

    def in_flight(self) -> float:
        """Requests that wait or are served."""


@dataclass(slots=True)
class _Waiting:
    """Requests without a place that came at the same moment, and lost their last place at the same moment."""

    came_s: float
    amount: float
    since_s: float
    again: bool = False


_OLDEST_FIRST = attrgetter("came_s")


class Fluid:
    """Requests as amounts. `_serving` are on machines that stay, `_leaving` on machines that take no new ones."""

    def __init__(self, demand: Demand, rules: Rules, streams: int) -> None:
        self.books = Books()
        self._demand, self._rules, self._streams, self._now_s = demand, rules, streams, 0.0
        self._decay = [math.exp(-BIN_S / service_s) for service_s in demand.service_s]
        self._ready: set[str] = set()
        self._serving = Served()
        self._leaving: dict[str, Served] = {}
        self._new: deque[_Waiting] = deque()  # and those sent again; both queues by when their requests came
        self._resumed: deque[_Waiting] = deque()
        self._seen_s, self._seen_tokens = 0.0, 0.0

    def advance(self, until_s: float) -> None:
        """Let time pass, bin by bin."""
        while self._now_s < until_s - 1e-9:
            index = int((self._now_s + 1e-9) / BIN_S)
            to_s = min((index + 1) * BIN_S, until_s)
            self._step(min(index, len(self._demand.requests) - 1), to_s)
            self._now_s = to_s

    def _step(self, index: int, to_s: float) -> None:
        demand, span_s = self._demand, to_s - self._now_s
        arrived, service_s = demand.requests[index] * span_s / BIN_S, demand.service_s[index]
        left = self._decay[index] if span_s == BIN_S else math.exp(-span_s / service_s)
        self.books.arrived += arrived
        self._seen_tokens += demand.tokens[index] * span_s / BIN_S
        gain = service_s * (1 - left) / span_s  # of a request that starts within the step, the share still served at its end
        places, serving = len(self._ready) * self._streams, self._serving
        serving.forget(to_s - self._rules.timeout_s)
        crowded = self._new or self._resumed or self._leaving or serving.amount * left + arrived * gain > places
        if crowded:
            self._crowded_step(index, left, gain, places, to_s)
            return
        self.books.completed += serving.amount * (1 - left) + arrived * (1 - gain)
        self.books.served_at_once += arrived
        serving.shrink(left)
        serving.add((self._now_s + to_s) / 2, arrived * gain, False)

    def _crowded_step(self, index: int, left: float, gain: float, places: float, to_s: float) -> None:
        arrived, middle_s = self._demand.requests[index] * (to_s - self._now_s) / BIN_S, (self._now_s + to_s) / 2
        if arrived:
            self._new.append(_Waiting(middle_s, arrived, middle_s))
        self._leave_for_free_places(places)
        self._finish(left)
        room = max(0.0, (places - self._serving.amount) / gain)
        again = 1 + self._demand.recompute_s / self._demand.service_s[index]  # one that resumes computes anew what it knows
        for queue, weight in ((self._resumed, again), (self._new, 1.0)):
            room = self._start(queue, room / weight, gain, to_s) * weight
        self._give_up(to_s)

    def _leave_for_free_places(self, places: float) -> None:
        if self._rules.migrates:
            for stay in self._leaving.values():
                if (room := places - self._serving.amount) <= 0:
                    break
                moved = stay.take(min(1.0, room / stay.amount) if stay.amount > 0 else 1.0)
                self.books.migrated += moved.amount
                self._serving.join(moved)
        self._leaving = {machine: stay for machine, stay in self._leaving.items() if stay.amount > 1e-9}

    def _finish(self, left: float) -> None:
        for served in (self._serving, *self._leaving.values()):
            self.books.completed += served.amount * (1 - left)
            served.shrink(left)

    def _start(self, queue: deque[_Waiting], room: float, gain: float, to_s: float) -> float:
        """Give the oldest of a queue the places that become free within the step; the room that is left."""
        while queue and room > 1e-12:
            first = queue[0]
            taken = min(first.amount, room)
            if queue is self._new and not first.again:
                self.books.started(max(0.0, (self._now_s + to_s) / 2 - first.came_s), taken, self._rules.delayed_s)
            elif to_s - first.since_s > self._rules.delayed_s:
                self.books.delayed += taken
            self._serving.add(first.came_s, taken * gain, first.again)
            self.books.completed += taken * (1 - gain)
            room -= taken
            first.amount -= taken
            if first.amount <= 1e-12:
                queue.popleft()
        return room

    def _give_up(self, to_s: float) -> None:
        for queue in (self._resumed, self._new):
            while queue and to_s - queue[0].came_s > self._rules.timeout_s:
                over = queue.popleft()
                self.books.gave_up(over.amount, self._rules.timeout_s, first=queue is self._new and not over.again)

    def add(self, machine: str) -> None:
        """This machine serves from now on."""
        self._ready.add(machine)

    def leave(self, machines: Iterable[str]) -> None:
        """Their share of what is served leaves with them."""
        for machine in machines:
            if machine in self._ready:
                self._leaving[machine] = self._serving.take(1 / len(self._ready))
                self._ready.discard(machine)

    def staying(self, machine: str) -> float:
        """Requests that are still on a machine that was left."""
        return self._leaving[machine].amount if machine in self._leaving else 0.0

    def lose(self, machines: Iterable[str]) -> None:
        """What they served is cut off: it goes on from its record, is sent again, or fails."""
        going = list(machines)
        here = [machine for machine in going if machine in self._ready]
        cut = self._serving.take(len(here) / len(self._ready)) if here else Served()
        self._ready.difference_update(here)
        for machine in going:
            if machine in self._leaving:
                cut.join(self._leaving.pop(machine))
        if cut.amount > 0:
            self._cut_off(cut.parts())

    def _cut_off(self, parts: list[Part]) -> None:
        books, rules, waiting = self.books, self._rules, list[_Waiting]()
        for came_s, amount, again in parts:
            books.cut_off += amount
            if rules.migrates:
                books.resumed += amount
            elif again or not rules.retries:
                books.failed += amount
                continue
            else:
                books.retried += amount
            waiting.append(_Waiting(came_s, amount, self._now_s, not rules.migrates))
        if rules.migrates:
            self._resumed = _merged(self._resumed, waiting)
        else:
            self._new = _merged(self._new, waiting)

    def load(self) -> Load:
        """The token rate since the last call, and the queue."""
        span_s = max(self._now_s - self._seen_s, 1e-9)
        rate, self._seen_s, self._seen_tokens = self._seen_tokens / span_s, self._now_s, 0.0
        queued = self._queued()
        index = min(int(self._now_s / BIN_S), len(self._demand.tokens) - 1)
        per_request = self._demand.tokens[index] / max(self._demand.requests[index], 1e-9)
        return Load(rate, streams=self._served(), queued=queued, queued_tokens=queued * per_request, ready=len(self._ready))

    def in_flight(self) -> float:
        """Requests that wait or are served."""
        return self._served() + self._queued()

    def _served(self) -> float:
        return self._serving.amount + sum(stay.amount for stay in self._leaving.values())

    def _queued(self) -> float:
        return sum(waiting.amount for queue in (self._new, self._resumed) for waiting in queue)


def _merged(queue: deque[_Waiting], more: list[_Waiting]) -> deque[_Waiting]:
    """One queue, by when the requests came, those that are alike together."""
    found: deque[_Waiting] = deque()
    for waiting in sorted([*queue, *more], key=_OLDEST_FIRST):
        last = found[-1] if found else None
        if last and (last.came_s, last.since_s, last.again) == (waiting.came_s, waiting.since_s, waiting.again):
            last.amount += waiting.amount
        else:
            found.append(waiting)
    return found
