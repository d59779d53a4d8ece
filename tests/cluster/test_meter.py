"""What a job's cluster costs while it runs."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import meter as module
from cluster.meter import Meter


class Clock:
    now_s = 1000.0

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def node(name: str, market: str, start_s: float = 0.0) -> dict[str, Any]:
    labels = {"ray.io/market-type": market}
    return {"id": name, "address": "", "labels": labels, "instance_type": "", "start_s": start_s, "end_s": None, "head": False}


def test_machines_that_come_and_go_cost_what_they_were_there(clock):
    shown = [node("a", "on-demand"), node("b", "spot")]
    meter = Meter({"spot": 0.36, "on-demand": 3.6}, lambda: shown)
    assert meter.bill(0).dollars == 0
    clock.now_s += 1000
    bill = meter.bill(500_000)
    assert (bill.dollars, bill.on_demand_dollars) == (pytest.approx(1.1), pytest.approx(2.0))
    assert bill.per_million_tokens == pytest.approx(2.2)
    shown.pop()
    shown.append(node("c", "spot", start_s=2400.0))
    clock.now_s += 1000
    assert meter.bill(1).dollars == pytest.approx(2.1 + 0.06), "b was last seen at 2000; c came at 2400"


def test_it_looks_at_most_every_few_seconds_and_goes_on_between(clock):
    looks = []

    def look() -> list[dict[str, Any]]:
        looks.append(clock.now_s)
        return [node("a", "on-demand")]

    meter = Meter({"on-demand": 3600.0}, look)
    for _ in range(40):
        clock.now_s += 1
        bill = meter.bill(0)
    assert len(looks) == 8
    assert bill.dollars == pytest.approx(40, abs=1.01)


def test_machines_without_a_price_cost_nothing_that_is_known(clock):
    meter = Meter({}, lambda: [node("a", "on-demand")])
    meter.bill(0)
    clock.now_s += 3600
    assert meter.bill(10).per_million_tokens is None
    assert meter.provenance == "none known for these machines"
