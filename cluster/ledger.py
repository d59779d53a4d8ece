"""What the service cost: machines' lives, prices over time and tokens served, as entries that are only ever appended.

Promise: the bill is a function of the entries, so a keeper that dies and returns goes on from the file; the machines' costs add up to the
total, to that of the markets, and to that of any two halves of the time. A machine that vanished while nobody looked is charged to the
last moment it was known to be there. Beside each cost stands what the same machine would have cost on demand. Machines without a known
price are counted in hours, apart. Price: a line per machine that comes or goes, one a minute, one per price.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any

from cluster.market import ON_DEMAND, MarketKind, Pool
from cluster.price_book import Price, PriceBook, pool_data

__all__ = ["Bill", "Entry", "Joined", "Ledger", "Left", "Life", "MachineCost", "Tick", "entry_line", "observe", "read_entries"]


@dataclass(frozen=True, slots=True)
class Joined:
    """A machine is there, since `start_s` (unix seconds)."""

    machine_id: str
    pool: Pool
    market: MarketKind
    start_s: float


@dataclass(frozen=True, slots=True)
class Left:
    """A machine went at `end_s`."""

    machine_id: str
    end_s: float


@dataclass(frozen=True, slots=True)
class Tick:
    """At `now_s`, every machine that has not left was there; `tokens` were served since the entry before."""

    now_s: float
    tokens: int = 0


Entry = Joined | Left | Tick | Price
_KINDS: dict[str, type[Entry]] = {"joined": Joined, "left": Left, "tick": Tick, "price": Price}


@dataclass(frozen=True, slots=True)
class Life:
    """A machine's time in the cluster; `end_s` is None while it is there."""

    machine_id: str
    pool: Pool
    market: MarketKind
    start_s: float
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class MachineCost:
    """What one life cost; None for both where one of the two prices is unknown."""

    life: Life
    hours: float
    dollars: float | None
    on_demand_dollars: float | None


@dataclass(frozen=True, slots=True)
class Bill:
    """The costs of some time."""

    machines: tuple[MachineCost, ...]
    tokens: int

    @property
    def dollars(self) -> float:
        """What was paid, as far as prices are known."""
        return sum(machine.dollars or 0.0 for machine in self.machines)

    @property
    def on_demand_dollars(self) -> float:
        """What the same machines would have cost on demand."""
        return sum(machine.on_demand_dollars or 0.0 for machine in self.machines)

    @property
    def unpriced_hours(self) -> float:
        """Machine-hours whose price is not known."""
        return sum(machine.hours for machine in self.machines if machine.dollars is None)

    @property
    def per_million_tokens(self) -> float | None:
        """Dollars per million tokens served; None before the first token, and when no machine has a price."""
        return self._rate(self.dollars)

    @property
    def on_demand_per_million_tokens(self) -> float | None:
        """The same, had every machine been on demand."""
        return self._rate(self.on_demand_dollars)

    def _rate(self, dollars: float) -> float | None:
        priced = any(machine.dollars is not None for machine in self.machines)
        return dollars / self.tokens * 1e6 if self.tokens and priced else None

    def part(self, market: MarketKind, instance_type: str) -> Bill:
        """The part of one market's machines of one type (with all the tokens)."""
        key = (market, instance_type)
        return replace(self, machines=tuple(m for m in self.machines if (m.life.market, m.life.pool.instance_type) == key))

    def summary(self) -> dict[str, Any]:
        """The figures as plain data, machines added up by market and type."""
        groups = sorted({(machine.life.market, machine.life.pool.instance_type) for machine in self.machines})
        by = [{"market": market, "instance_type": kind, **self.part(market, kind)._sums()} for market, kind in groups]
        return {
            **self._sums(),
            "tokens": self.tokens,
            "dollars_per_million_tokens": self.per_million_tokens,
            "on_demand_dollars_per_million_tokens": self.on_demand_per_million_tokens,
            "unpriced_hours": self.unpriced_hours,
            "by": by,
        }

    def _sums(self) -> dict[str, Any]:
        priced = any(machine.dollars is not None for machine in self.machines)
        return {
            "machines": len({machine.life.machine_id for machine in self.machines}),
            "hours": sum(machine.hours for machine in self.machines),
            "dollars": self.dollars if priced else None,
            "on_demand_dollars": self.on_demand_dollars if priced else None,
        }


@dataclass(slots=True)
class Ledger:
    """What the entries so far say."""

    lives: list[Life] = field(default_factory=list)
    book: PriceBook = field(default_factory=PriceBook)
    ticks: list[tuple[float, int]] = field(default_factory=list)
    """(moment, tokens served up to it)."""
    seen_s: float | None = None
    """The last moment of which something is known; None: nothing yet."""
    tokens: int = 0
    _here: dict[str, int] = field(default_factory=dict)
    """Where in `lives` those stand that have not ended."""

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Ledger:
        """The ledger that these entries make."""
        ledger = cls()
        ledger.take_all(entries)
        return ledger

    def take_all(self, entries: Iterable[Entry]) -> None:
        """Go on by entries; prices that follow each other go into the book together."""
        for prices, run in groupby(entries, key=lambda entry: isinstance(entry, Price)):
            if prices:
                self.book = self.book.with_prices(entry for entry in run if isinstance(entry, Price))
            else:
                for entry in run:
                    self.take(entry)

    def take(self, entry: Entry) -> None:
        """Go on by one entry."""
        if isinstance(entry, Price):
            self.book = self.book.with_prices([entry])
        elif isinstance(entry, Joined):
            if entry.machine_id not in self._here:
                self._here[entry.machine_id] = len(self.lives)
                self.lives.append(Life(entry.machine_id, entry.pool, entry.market, entry.start_s))
                self._saw(entry.start_s)
        elif isinstance(entry, Left):
            place = self._here.pop(entry.machine_id, None)
            if place is not None:
                self.lives[place] = replace(self.lives[place], end_s=max(entry.end_s, self.lives[place].start_s))
        else:
            self.tokens += entry.tokens
            self._saw(entry.now_s)
            self.ticks.append((entry.now_s, self.tokens))

    def _saw(self, moment_s: float) -> None:
        self.seen_s = moment_s if self.seen_s is None else max(self.seen_s, moment_s)

    @property
    def here(self) -> dict[str, Life]:
        """The machines that have not left, by id."""
        return {name: self.lives[place] for name, place in self._here.items()}

    def bill(self, start_s: float = -math.inf, end_s: float = math.inf, *, and_then: Tick | None = None) -> Bill:
        """The costs between two moments, by default of all time; `and_then` is a tick that has not been taken yet."""
        seen_s = and_then.now_s if and_then else self.seen_s or 0.0
        rows = [
            self._cost(life, max(start_s, life.start_s), min(seen_s if life.end_s is None else life.end_s, end_s)) for life in self.lives
        ]
        since = and_then.tokens if and_then and start_s < and_then.now_s <= end_s else 0
        return Bill(tuple(row for row in rows if row is not None), self._tokens_by(end_s) - self._tokens_by(start_s) + since)

    def _tokens_by(self, moment_s: float) -> int:
        return next((tokens for at, tokens in reversed(self.ticks) if at <= moment_s), 0)

    def _cost(self, life: Life, start_s: float, end_s: float) -> MachineCost | None:
        if end_s <= start_s:
            return None
        dollars = self.book.dollars(life.pool, life.market, start_s, end_s)
        on_demand = self.book.dollars(life.pool, ON_DEMAND, start_s, end_s)
        priced = dollars is not None and on_demand is not None
        return MachineCost(life, (end_s - start_s) / 3600, dollars if priced else None, on_demand if priced else None)


def observe(ledger: Ledger, machines: Sequence[Life], tokens: int, now_s: float) -> list[Entry]:
    """The entries that bring `ledger` up to what the cluster shows at `now_s`, when `tokens` were served since the last look.

    A machine that is not shown any more, nor when it ended, was there for certain only until the ledger's last moment.
    """
    shown, here = {machine.machine_id: machine for machine in machines}, ledger.here
    last_s = now_s if ledger.seen_s is None else ledger.seen_s
    entries: list[Entry] = []
    for name in here:
        machine = shown.get(name)
        if machine is None or machine.end_s is not None:
            known = None if machine is None else machine.end_s
            entries.append(Left(name, last_s if known is None else known))
    for machine in machines:
        if machine.end_s is None and machine.machine_id not in here:
            entries.append(Joined(machine.machine_id, machine.pool, machine.market, machine.start_s))
    return [*entries, Tick(now_s, tokens)]


def entry_line(entry: Entry) -> str:
    """An entry as one line of JSON."""
    data = {"entry": next(name for name, cls in _KINDS.items() if isinstance(entry, cls)), **asdict(entry)}
    if isinstance(entry, Joined | Price):
        data["pool"] = pool_data(entry.pool)
    return json.dumps(data, separators=(",", ":")) + "\n"


def read_entries(text: str, *, where: str) -> list[Entry]:
    """The entries of a file; a last line that was cut off in the middle of being written is none. ValueError for any other mistake."""
    lines = text.split("\n")[:-1]
    return [_read_entry(line, f"{where}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _read_entry(line: str, where: str) -> Entry:
    try:
        data: Mapping[str, object] = json.loads(line)
        fields = dict(data)
        cls = _KINDS[str(fields.pop("entry"))]
        if isinstance(fields.get("pool"), dict):
            fields["pool"] = Pool(**fields["pool"])  # type: ignore[arg-type]  # TypeError is the answer to what is no pool
        return cls(**fields)  # type: ignore[arg-type]  # likewise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{where}: is no entry of a ledger: {line[:60]!r}; is it a file that `sterna serve` wrote?") from None
