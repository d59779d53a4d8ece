"""Requests on machines that come and go, one by one: the exact model that the fluid (cluster/requests.py) is held against.

Promise: the same books under the same rules; each request has its own length and sits on one machine, the least loaded when it came.
Price: a heap operation per request: small runs. A request that goes on from its record has only the rest to do; one that is sent again,
all of it.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from cluster.autoscale import Load
from cluster.demand import BIN_S, Demand
from cluster.requests import Books, Rules

__all__ = ["Single"]


@dataclass(slots=True, eq=False)
class _Request:
    rest_s: float
    whole_s: float
    came_s: float
    since_s: float
    """Since when it has waited this time."""
    sent: int = 1
    begun: bool = False
    ends_s: float = 0.0
    machine: str | None = None


_OLDEST_FIRST = attrgetter("came_s")


class Single:
    """Requests as they are: (arrival, seconds in service) each, in order."""

    def __init__(self, requests: Sequence[tuple[float, float]], demand: Demand, rules: Rules, streams: int) -> None:
        self.books = Books()
        self._requests, self._demand, self._rules, self._streams = requests, demand, rules, streams
        self._next, self._now_s, self._seen_s = 0, 0.0, 0.0
        self._places: dict[str, set[_Request]] = {}
        self._leaving: dict[str, set[_Request]] = {}
        self._ends: list[tuple[float, int, _Request]] = []
        self._new: deque[_Request] = deque()
        self._resumed: deque[_Request] = deque()
        self._count = 0

    def advance(self, until_s: float) -> None:
        """Arrivals, ends and timeouts in their order."""
        while True:
            arrival = self._requests[self._next][0] if self._next < len(self._requests) else until_s
            end = self._ends[0][0] if self._ends else until_s
            expiry = min((queue[0].came_s + self._rules.timeout_s for queue in (self._new, self._resumed) if queue), default=until_s)
            at_s = min(arrival, end, expiry)
            if at_s >= until_s:
                break
            self._now_s = max(self._now_s, at_s)
            if at_s == end and self._ends:
                self._end(heapq.heappop(self._ends)[2])
            elif at_s == arrival and self._next < len(self._requests):
                self._arrive(*self._requests[self._next])
                self._next += 1
            else:
                self._give_up()
            self._serve()
        self._now_s = until_s

    def _arrive(self, at_s: float, service_s: float) -> None:
        self.books.arrived += 1
        self._new.append(_Request(service_s, service_s, at_s, at_s))

    def _end(self, request: _Request) -> None:
        """Its time is over, unless it has been cut off or moved meanwhile (then this entry of the heap is an old one)."""
        name = request.machine or ""
        where = self._places.get(name) or self._leaving.get(name) or set()
        if request in where and request.ends_s <= self._now_s + 1e-9:
            where.discard(request)
            request.machine = None
            self.books.completed += 1

    def _give_up(self) -> None:
        for queue in (self._resumed, self._new):
            while queue and queue[0].came_s + self._rules.timeout_s <= self._now_s + 1e-9:
                self.books.gave_up(1.0, self._rules.timeout_s, first=not queue.popleft().begun)

    def _serve(self) -> None:
        """The oldest who wait get the places that are free: requests that leave a machine first, then resumed ones, then new ones."""
        if self._rules.migrates and self._leaving:
            self._migrate()
        for queue in (self._resumed, self._new):
            while queue and (machine := self._free()) is not None:
                self._start(queue.popleft(), machine)

    def _free(self) -> str | None:
        if not self._places:
            return None
        machine = min(self._places, key=lambda name: len(self._places[name]))
        return machine if len(self._places[machine]) < self._streams else None

    def _start(self, request: _Request, machine: str) -> None:
        wait_s = self._now_s - request.since_s
        if not request.begun and request.sent == 1:
            self.books.started(wait_s, 1.0, self._rules.delayed_s)
        elif wait_s > self._rules.delayed_s:
            self.books.delayed += 1
        request.begun, request.machine, request.ends_s = True, machine, self._now_s + request.rest_s
        self._places[machine].add(request)
        self._count += 1
        heapq.heappush(self._ends, (request.ends_s, self._count, request))

    def _migrate(self) -> None:
        for stay in self._leaving.values():
            for request in sorted(stay, key=lambda r: r.ends_s, reverse=True):
                machine = self._free()
                if machine is None:
                    return
                stay.discard(request)
                request.machine = machine
                self._places[machine].add(request)
                self.books.migrated += 1

    def add(self, machine: str) -> None:
        """This machine serves from now on."""
        self._places[machine] = set()
        self._serve()

    def leave(self, machines: Iterable[str]) -> None:
        """These take no new requests; theirs leave for free places, or stay until done."""
        for machine in machines:
            if machine in self._places:
                self._leaving[machine] = self._places.pop(machine)
        self._serve()

    def staying(self, machine: str) -> float:
        """Requests that are still on a machine that was left."""
        return len(self._leaving.get(machine, ()))

    def lose(self, machines: Iterable[str]) -> None:
        """These are gone."""
        for machine in machines:
            cut = self._places.pop(machine, set()) | self._leaving.pop(machine, set())
            for request in sorted(cut, key=lambda r: r.ends_s):
                self._cut_off(request)
        self._new, self._resumed = (deque(sorted(queue, key=_OLDEST_FIRST)) for queue in (self._new, self._resumed))
        self._serve()

    def _cut_off(self, request: _Request) -> None:
        books, rules = self.books, self._rules
        books.cut_off += 1
        rest_s = max(0.0, request.ends_s - self._now_s)
        request.machine, request.ends_s, request.since_s = None, float("inf"), self._now_s
        if rules.migrates:
            books.resumed += 1
            request.rest_s = rest_s + self._demand.recompute_s
            self._resumed.append(request)
        elif request.sent <= rules.retries:
            books.retried += 1
            request.rest_s, request.sent = request.whole_s, request.sent + 1
            self._new.append(request)
        else:
            books.failed += 1

    def load(self) -> Load:
        """The token rate since the last call, and the queue."""
        first, last = int(self._seen_s / BIN_S), max(int(self._seen_s / BIN_S) + 1, int(self._now_s / BIN_S))
        tokens = sum(self._demand.tokens[first:last]) / (max(1, last - first) * BIN_S)
        self._seen_s = self._now_s
        index = min(int(self._now_s / BIN_S), len(self._demand.tokens) - 1)
        queued = len(self._new) + len(self._resumed)
        per_request = self._demand.tokens[index] / max(self._demand.requests[index], 1e-9)
        return Load(tokens, streams=self._served(), queued=queued, queued_tokens=queued * per_request, ready=len(self._places))

    def in_flight(self) -> float:
        """Requests that wait or are served."""
        return self._served() + len(self._new) + len(self._resumed)

    def _served(self) -> int:
        return sum(len(held) for where in (self._places, self._leaving) for held in where.values())
