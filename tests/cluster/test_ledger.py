"""The ledger: what entries cost, that the parts add up, and that nothing is lost when its keeper dies."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.ledger import Bill, Joined, Ledger, Left, Life, Tick, entry_line, observe, read_entries
from cluster.market import ON_DEMAND, SPOT, Pool
from cluster.price_book import Price

ZONES = [Pool("us-west-2a", "big"), Pool("us-west-2b", "small")]
REGION = [Pool("us-west-2", "big"), Pool("us-west-2", "small")]
PRICES = st.lists(st.builds(Price, st.sampled_from(ZONES), st.just(SPOT), st.integers(0, 9), st.integers(0, 9000)), max_size=8)
FIXED = [Price(pool, ON_DEMAND, 10.0) for pool in REGION]


@st.composite
def histories(draw) -> list[tuple[float, list[Life], int]]:
    """Looks at a fleet: (moment, machines shown, tokens served since the look before)."""
    spans = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20), st.sampled_from(ZONES), st.sampled_from([SPOT, ON_DEMAND]))))
    looks = []
    for now in range(0, draw(st.integers(1, 25))):
        shown = [
            Life(f"m{n}", pool, market, start * 60.0)
            for n, (start, length, pool, market) in enumerate(spans)
            if start <= now < start + length
        ]
        looks.append((now * 60.0, shown, draw(st.integers(0, 100))))
    return looks


def entries_of(looks, prices) -> list:
    ledger, kept = Ledger(), []
    for entry in [*FIXED, *prices]:
        ledger.take(entry)
        kept.append(entry)
    for now, shown, tokens in looks:
        for entry in observe(ledger, shown, tokens, now):
            ledger.take(entry)
            kept.append(entry)
    return kept


def figures(bill: Bill) -> tuple[float, float, float, int]:
    return bill.dollars, bill.on_demand_dollars, bill.unpriced_hours, bill.tokens


@given(histories(), PRICES, st.integers(-60, 3100))
def test_costs_add_up_over_machines_markets_and_time(looks, prices, cut):
    ledger = Ledger.of(entries_of(looks, prices))
    bill = ledger.bill()
    assert bill.dollars == pytest.approx(math.fsum(machine.dollars or 0 for machine in bill.machines))
    summary = bill.summary()
    for name in ("dollars", "on_demand_dollars", "hours", "machines"):
        assert summary[name] or pytest.approx(math.fsum(part[name] or 0 for part in summary["by"])) == 0, name
    before, after = ledger.bill(end_s=cut), ledger.bill(start_s=cut)
    assert figures(bill) == pytest.approx(tuple(a + b for a, b in zip(figures(before), figures(after), strict=True)))
    assert bill.tokens == sum(tokens for _, _, tokens in looks)


@given(histories(), PRICES)
def test_machine_hours_are_those_in_which_machines_were_shown(looks, prices):
    bill = Ledger.of(entries_of(looks, prices)).bill()
    shown = sum(60 * len({machine.machine_id for machine in machines}) for _, machines, _ in looks[:-1]) / 3600
    missed = sum(1 for (_, now, _), (_, then, _) in pairwise(looks) for m in now if m not in then) * 60 / 3600
    assert sum(machine.hours for machine in bill.machines) == pytest.approx(shown - missed), "up to the last look that showed it"


@given(histories(), PRICES, st.integers(0, 50))
def test_a_keeper_that_dies_and_returns_writes_the_same_bill(looks, prices, num_looks):
    until = "".join(map(entry_line, entries_of(looks[:num_looks], prices)))
    ledger = Ledger.of(read_entries(until, where="file"))
    for now, shown, tokens in looks[num_looks:]:
        for entry in observe(ledger, shown, tokens, now):
            ledger.take(entry)
    assert figures(ledger.bill()) == figures(Ledger.of(entries_of(looks, prices)).bill())


@given(histories(), PRICES, st.integers(0, 300))
def test_a_file_cut_anywhere_holds_the_entries_whose_lines_are_whole(looks, prices, num_bytes):
    entries = entries_of(looks, prices)
    text = "".join(map(entry_line, entries))
    cut = text[: len(text) - num_bytes]
    assert read_entries(cut, where="file") == entries[: cut.count("\n")]


def fleet(*entries) -> Ledger:
    return Ledger.of([*FIXED, Price(ZONES[0], SPOT, 3.0), *entries])


def test_spot_costs_less_than_the_same_machine_on_demand():
    ledger = fleet(Joined("a", ZONES[0], SPOT, 0.0), Joined("b", ZONES[1], ON_DEMAND, 0.0), Tick(3600.0, 500_000))
    bill = ledger.bill()
    assert (bill.dollars, bill.on_demand_dollars) == (13.0, 20.0)
    assert (bill.per_million_tokens, bill.on_demand_per_million_tokens) == (26.0, 40.0)
    assert [(row["market"], row["instance_type"], row["dollars"]) for row in bill.summary()["by"]] == [
        ("on-demand", "small", 10.0),
        ("spot", "big", 3.0),
    ]


def test_a_machine_that_vanished_unseen_is_charged_to_when_it_was_last_there():
    ledger = fleet(Joined("a", ZONES[0], SPOT, 0.0), Tick(1800.0))
    (left, tick) = observe(ledger, [], 7, 36000.0)
    assert left == Left("a", 1800.0)
    assert tick == Tick(36000.0, 7)


def test_a_machine_that_was_there_all_along_is_charged_for_the_time_nobody_looked():
    ledger = fleet(Joined("a", ZONES[0], SPOT, 0.0), Tick(1800.0))
    for entry in observe(ledger, [Life("a", ZONES[0], SPOT, 0.0)], 0, 36000.0):
        ledger.take(entry)
    assert ledger.bill().dollars == 30.0


def test_an_end_that_the_cluster_knows_counts():
    ledger = fleet(Joined("a", ZONES[0], SPOT, 0.0), Tick(1800.0))
    (left, _) = observe(ledger, [Life("a", ZONES[0], SPOT, 0.0, end_s=5400.0)], 0, 36000.0)
    assert left == Left("a", 5400.0)


def test_a_machine_may_come_back_under_its_name():
    ledger = fleet(Joined("a", ZONES[0], SPOT, 0.0), Left("a", 3600.0), Joined("a", ZONES[0], SPOT, 7200.0), Tick(10800.0))
    assert ledger.bill().dollars == 6.0
    assert ledger.bill().summary()["machines"] == 1


def test_a_machine_without_a_price_is_told_apart():
    ledger = fleet(Joined("a", ZONES[0], SPOT, 0.0), Joined("x", Pool("desk", "unheard-of"), ON_DEMAND, 0.0), Tick(3600.0, 1))
    assert (ledger.bill().dollars, ledger.bill().unpriced_hours) == (3.0, 1.0)
    alone = Ledger.of([Joined("x", Pool("desk", "unheard-of"), ON_DEMAND, 0.0), Tick(3600.0, 1)]).bill()
    assert alone.per_million_tokens is None
    assert alone.summary()["dollars"] is None


def test_a_tick_that_has_not_been_taken_can_be_counted():
    ledger = fleet(Joined("a", ZONES[0], SPOT, 0.0), Tick(1800.0, 5))
    bill = ledger.bill(and_then=Tick(3600.0, 7))
    assert (bill.dollars, bill.tokens) == (3.0, 12)
    assert (ledger.bill().dollars, ledger.bill().tokens) == (1.5, 5)


def test_no_machine_is_no_bill():
    bill = Ledger().bill()
    assert (bill.dollars, bill.tokens, bill.per_million_tokens) == (0.0, 0, None)


@pytest.mark.parametrize(
    "line", ["{}", "[]", '{"entry": "tick"}', '{"entry": "party", "now_s": 1}', "soon", '{"entry": "joined", "pool": 3}']
)
def test_what_is_no_ledger_is_told_with_its_place(line):
    with pytest.raises(ValueError, match=r"costs.jsonl, line 2: is no entry of a ledger"):
        read_entries(f"{entry_line(Tick(1.0))}{line}\n", where="costs.jsonl")
