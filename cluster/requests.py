"""Requests on machines that come and go, as a fluid: how many are served, wait, move, start again or fail.

Promise: nothing is lost from the books: requests that came = completed + failed + in flight, at every moment. Both models, this fluid for
fleets and single requests for small runs (cluster/requests_single.py), keep the same books under the same rules.
Price: about a microsecond per 10 s of simulated time while nobody waits. A place serves one request at full speed; a request holds it for
its service time, taken as exponential with the mean of its minute, so what remains of a request that lost its machine is as long again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from cluster.autoscale import Load
from cluster.demand import BIN_S, Demand
from cluster.settings import settings

__all__ = ["Books", "Fluid", "Requests", "Rules"]


@settings
class Rules:
    """What happens to a request whose machine goes away."""

    timeout_s: float = 100.0
    """A request that has waited so long for a place fails."""
    migrates: bool = True
    """Whether live requests leave a machine that was given notice, and go on from their record after one that died without."""
    heeds_notice: bool = True
    """Whether a machine that was given notice takes no new requests, and counts as lost for the policy."""
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
    """(seconds until a place was free, requests), for those that had to wait."""
    served_at_once: float = 0.0

    def started(self, wait_s: float, amount: float, delayed_s: float) -> None:
        """A request got its first place."""
        if wait_s <= 0:
            self.served_at_once += amount
        else:
            self.waits.append((wait_s, amount))
            self.delayed += amount if wait_s > delayed_s else 0.0

    def wait_quantiles(self, *shares: float) -> list[float]:
        """Seconds that these shares of the started requests waited at most."""
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

    def leave(self, machines: Iterable[str], *, retiring: bool = False) -> None:
        """These take no new requests; theirs leave for free places, or stay until done. `retiring`: by our own will."""

    def lose(self, machines: Iterable[str]) -> None:
        """These are gone, and with them what they served."""

    def load(self) -> Load:
        """What a service sees of itself, since the last call."""

    def in_flight(self) -> float:
        """Requests that wait or are served."""


class Fluid:
    """Requests as amounts. `serving` are on machines that stay, `leaving` on machines that take no new ones."""

    def __init__(self, demand: Demand, rules: Rules, streams: int) -> None:
        self.books = Books()
        self._demand, self._rules, self._streams, self._now_s = demand, rules, streams, 0.0
        self._decay = [math.exp(-BIN_S / service_s) for service_s in demand.service_s]
        self._ready: set[str] = set()
        self._serving = self._serving_again = 0.0  # the second: those of them that were sent again
        self._leaving: dict[str, tuple[float, float]] = {}  # per machine: the same two amounts
        self._new: deque[list[float]] = deque()  # [since, amount, sent again]: the two queues, oldest first
        self._resumed: deque[list[float]] = deque()
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
        places = len(self._ready) * self._streams
        if not (self._new or self._resumed or self._leaving):  # the common case: everyone finds a place at once
            after = self._serving * left + arrived * gain
            if after <= places:
                self.books.completed += self._serving + arrived - after
                self.books.served_at_once += arrived
                self._serving, self._serving_again = after, self._serving_again * left
                return
        self._crowded_step(index, left, gain, places, to_s)

    def _crowded_step(self, index: int, left: float, gain: float, places: float, to_s: float) -> None:
        arrived = self._demand.requests[index] * (to_s - self._now_s) / BIN_S
        if arrived:
            self._new.append([(self._now_s + to_s) / 2, arrived, 0.0])
        self._leave_for_free_places(places)
        self._finish(left)
        room = max(0.0, (places - self._serving) / gain)
        again = 1 + self._demand.recompute_s / self._demand.service_s[index]  # one that resumes computes anew what it knows
        for queue, weight in ((self._resumed, again), (self._new, 1.0)):
            room = self._start(queue, room / weight, gain, to_s) * weight
        self._give_up(to_s)

    def _leave_for_free_places(self, places: float) -> None:
        if self._rules.migrates:
            for machine, (amount, again) in list(self._leaving.items()):
                share = min(1.0, max(0.0, places - self._serving) / amount) if amount > 0 else 1.0
                self._serving, self._serving_again = self._serving + share * amount, self._serving_again + share * again
                self._leaving[machine] = ((1 - share) * amount, (1 - share) * again)
                self.books.migrated += share * amount
        self._leaving = {machine: rest for machine, rest in self._leaving.items() if rest[0] > 1e-9}

    def _finish(self, left: float) -> None:
        stay = sum(amount for amount, _ in self._leaving.values())
        self.books.completed += (self._serving + stay) * (1 - left)
        self._serving, self._serving_again = self._serving * left, self._serving_again * left
        self._leaving = {machine: (amount * left, again * left) for machine, (amount, again) in self._leaving.items()}

    def _start(self, queue: deque[list[float]], room: float, gain: float, to_s: float) -> float:
        """Give the oldest of a queue the places that become free within the step; the room that is left."""
        while queue and room > 1e-12:
            since_s, amount, again = queue[0]
            taken = min(amount, room)
            if queue is self._new and not again:
                self.books.started(max(0.0, (self._now_s + to_s) / 2 - since_s), taken, self._rules.delayed_s)
            elif to_s - since_s > self._rules.delayed_s:
                self.books.delayed += taken
            self._serving += taken * gain
            self._serving_again += taken * gain if again else 0.0
            self.books.completed += taken * (1 - gain)
            room -= taken
            queue[0][1] -= taken
            if queue[0][1] <= 1e-12:
                queue.popleft()
        return room

    def _give_up(self, to_s: float) -> None:
        for queue in (self._resumed, self._new):
            while queue and to_s - queue[0][0] > self._rules.timeout_s:
                amount = queue.popleft()[1]
                self.books.failed += amount
                self.books.timed_out += amount

    def add(self, machine: str) -> None:
        """This machine serves from now on."""
        self._ready.add(machine)

    def leave(self, machines: Iterable[str], *, retiring: bool = False) -> None:
        """Their share of what is served leaves with them; requests of machines that retire by our will always find their way."""
        going = [machine for machine in machines if machine in self._ready]
        if not going:
            return
        share = 1 / len(self._ready)
        amount, again = self._serving * share, self._serving_again * share
        self._ready.difference_update(going)
        if retiring:  # they were spare: what they serve fits elsewhere, or is done before they go
            return
        self._serving -= amount * len(going)
        self._serving_again -= again * len(going)
        self._leaving |= dict.fromkeys(going, (amount, again))

    def lose(self, machines: Iterable[str]) -> None:
        """What they served is cut off: it goes on from its record, is sent again, or fails."""
        for machine in machines:
            if machine in self._ready:
                share = 1 / len(self._ready)
                amount, again = self._serving * share, self._serving_again * share
                self._serving, self._serving_again = self._serving - amount, self._serving_again - again
                self._ready.discard(machine)
            else:
                amount, again = self._leaving.pop(machine, (0.0, 0.0))
            if amount > 0:
                self._cut_off(amount, again)

    def _cut_off(self, amount: float, again: float) -> None:
        books, rules = self.books, self._rules
        books.cut_off += amount
        if rules.migrates:
            books.resumed += amount
            _join(self._resumed, self._now_s, amount, 0.0)
            return
        failed = again if rules.retries else amount
        books.failed += failed
        if amount - failed > 0:
            books.retried += amount - failed
            _join(self._new, self._now_s, amount - failed, 1.0)

    def load(self) -> Load:
        """The token rate since the last call, and the queue."""
        span_s = max(self._now_s - self._seen_s, 1e-9)
        rate, self._seen_s, self._seen_tokens = self._seen_tokens / span_s, self._now_s, 0.0
        queued = sum(chunk[1] for queue in (self._new, self._resumed) for chunk in queue)
        index = min(int(self._now_s / BIN_S), len(self._demand.tokens) - 1)
        per_request = self._demand.tokens[index] / max(self._demand.requests[index], 1e-9)
        streams = self._serving + sum(amount for amount, _ in self._leaving.values())
        return Load(rate, streams=streams, queued=queued, queued_tokens=queued * per_request, ready=len(self._ready))

    def in_flight(self) -> float:
        """Requests that wait or are served."""
        queued = sum(chunk[1] for queue in (self._new, self._resumed) for chunk in queue)
        return self._serving + sum(amount for amount, _ in self._leaving.values()) + queued


def _join(queue: deque[list[float]], since_s: float, amount: float, again: float) -> None:
    """At the end of a queue, together with others of the same moment."""
    if queue and queue[-1][0] == since_s and queue[-1][2] == again:
        queue[-1][1] += amount
    else:
        queue.append([since_s, amount, again])
