"""When strikes come, and whom they take."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import benchmarks.storm_fleet
from benchmarks.storm_fleet import AIMED, Schedule, Storm, pauses


class Machines:
    """Names and lives only."""

    def __init__(self, num_spot: int, failures: int = 0) -> None:
        self.nodes: dict[str, Any] = {}
        self.lives: dict[str, list[float]] = {}
        self.failures, self.dead = 0, set[str]()
        for market in ("on-demand", *["spot"] * num_spot):
            self.add(market)
        self.failures = failures

    def add(self, market: str) -> str:
        if self.failures:
            self.failures -= 1
            raise Exception("The current node timed out during startup")
        name = f"{market}-{len(self.nodes)}"
        self.nodes[name], self.lives[name] = SimpleNamespace(node_id=f"node of {name}"), [0.0]
        return name

    def kill(self, name: str) -> None:
        self.lives[name].append(1.0)

    def lost(self) -> list[str]:
        return [name for name in self.dead if len(self.lives[name]) == 1]


def live(**counts: int) -> dict[str, str]:
    """Streams by machine, as node ids."""
    return {f"{place}/{i}": f"node of {place.replace('_', '-')}" for place, count in counts.items() for i in range(count)}


def test_pauses_have_the_rhythm_of_the_trace_and_go_round(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("0,add,n1\n1000,remove,n1\n1000,remove,n2\n2000,remove,n3\n5000,remove,n4\n")
    assert pauses(trace, 4, 2.0) == [1.0, 3.0, 1.0, 3.0]
    trace.write_text("0,add,n1\n")
    with pytest.raises(ValueError, match="fewer than two removals"):
        pauses(trace, 4, 2.0)


def test_half_of_the_strikes_come_with_notice() -> None:
    schedule = Schedule((3.0, 4.0), 10.0)
    assert [schedule.notice(number) for number in range(4)] == [10.0, None, 10.0, None]
    assert [schedule.pause(number) for number in range(3)] == [3.0, 4.0, 0.0]


def test_a_machine_that_ended_by_itself_is_replaced_and_is_no_strike() -> None:
    machines = Machines(2)
    machines.dead.add("spot-2")
    storm = Storm(machines, lambda: live(spot_1=AIMED, spot_2=AIMED + 1), lambda: True)  # type: ignore[arg-type]
    assert storm.strike(0, None, lambda: False)
    assert [strike.victim for strike in storm.strikes] == ["spot-1"]
    assert len(machines.lives["spot-2"]) == 2
    assert sum(len(life) == 1 for name, life in machines.lives.items() if name.startswith("spot")) == 2


def test_a_strike_takes_the_spot_machine_with_most_streams_that_were_never_hit() -> None:
    machines = Machines(2)
    streams = live(spot_1=AIMED + 1, spot_2=AIMED, on_demand_0=9)
    storm = Storm(machines, lambda: streams, lambda: True)  # type: ignore[arg-type]
    assert storm.strike(0, None, lambda: False)
    assert storm.strike(1, None, lambda: False)
    assert [strike.victim for strike in storm.strikes] == ["spot-1", "spot-2"]  # a machine that is gone is not struck again
    assert len(storm.strikes[0].aimed) == AIMED + 1
    assert sum(name.startswith("spot") and len(life) == 1 for name, life in machines.lives.items()) == 2


def test_a_strike_waits_for_streams_and_replicas_or_the_end() -> None:
    few = Storm(Machines(2), lambda: live(spot_1=AIMED - 1), lambda: True)  # type: ignore[arg-type]
    looks = iter([False, False, True])
    assert not few.strike(0, None, lambda: next(looks))
    down = Storm(Machines(2), lambda: live(spot_1=AIMED), lambda: False)  # type: ignore[arg-type]
    looks = iter([False, True])
    assert not down.strike(0, None, lambda: next(looks))
    known = Storm(Machines(2), lambda: live(spot_1=AIMED), lambda: True)  # type: ignore[arg-type]
    known.hits.update(live(spot_1=AIMED))
    looks = iter([False, True])
    assert not known.strike(0, None, lambda: next(looks), fresh=True)
    assert [few.strikes, down.strikes, known.strikes] == [[], [], []]


def test_patience_with_what_never_comes_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.storm_fleet, "PATIENCE_S", 0.2)
    with pytest.raises(RuntimeError, match=f"no spot machine had {AIMED} streams"):
        Storm(Machines(1), dict, lambda: True).strike(0, None, lambda: False)  # type: ignore[arg-type]


def test_a_machine_that_does_not_start_is_asked_for_again() -> None:
    slow = Machines(1, failures=2)
    assert Storm(slow, lambda: live(spot_1=AIMED), lambda: True).strike(0, None, lambda: False)  # type: ignore[arg-type]
    assert "spot-2" in slow.nodes
    with pytest.raises(RuntimeError, match="no fresh machine started in 3 attempts"):
        Storm(Machines(1, failures=3), lambda: live(spot_1=AIMED), lambda: True).strike(0, None, lambda: False)  # type: ignore[arg-type]
