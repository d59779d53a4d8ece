"""The simulator: policies side by side; ours is the function that production calls, and what it promises holds on a made-up market."""

import json
import random
import time

import pytest

import sterna
from cluster import autoscale, placement
from cluster.autoscale import Target
from cluster.census import Census
from cluster.placement import Plan
from cluster.simulate import ROWS, SimulateConfig, simulate
from serve.scaling.ground import Ground
from serve.scaling.steward import Sight, Steward


@pytest.fixture(scope="module")
def zones(tmp_path_factory):
    """Two zones for two days, each away a few times; seeded."""
    folder, chance, paths = tmp_path_factory.mktemp("traces"), random.Random(3), []
    for zone in "ab":
        data = []
        while len(data) < 576:
            data += [4] * chance.randint(20, 150) + [chance.choice((0, 0, 1, 2))] * chance.randint(2, 25)
        paths.append(folder / f"{zone}.json")
        paths[-1].write_text(json.dumps({"metadata": {"gap_seconds": 300}, "data": data[:576]}))
    return tuple(map(str, paths))


@pytest.fixture(scope="module")
def outcome(zones):
    return simulate(SimulateConfig(traces=zones, nodes=40))


def test_ours_is_cheap_fails_little_and_is_no_worse_than_skyserve(outcome):
    rows = {row.name: row for row in outcome.rows}
    assert tuple(rows) == ROWS
    assert rows["on-demand"].cost == 1.0
    assert rows["ours"].cost <= 0.55
    assert rows["ours"].failed <= 0.001
    assert rows["ours"].cost <= rows["skyserve"].cost
    assert rows["ours"].failed <= rows["skyserve"].failed
    assert rows["ours"].retried == 0
    assert rows["no-migration"].retried > 0


def test_the_oracle_is_below_everyone_who_serves(outcome):
    served = {row.name: row.cost for row in outcome.rows if row.failed < 0.001}
    assert outcome.oracle_bare < min(outcome.oracle, *served.values())
    assert outcome.oracle < served["on-demand"], "and ours may be below it: it buys less headroom on demand than the target has"


def test_table_and_json_say_the_same(outcome):
    shown = str(outcome)
    assert "SkyServe-style" in shown
    assert "oracle" in shown
    summary = json.loads(json.dumps(outcome.summary()))
    assert [row["name"] for row in summary["rows"]] == list(ROWS)
    assert f"{summary['rows'][-1]['cost']:.3f}" in shown.splitlines()[-2]


def test_another_policy_function_is_another_simulation(zones, monkeypatch):
    config = SimulateConfig(traces=zones, nodes=4, days=0.2, rows=("ours",))
    before = simulate(config).rows[-1].cost
    monkeypatch.setattr(placement, "place", lambda target, *_: Plan({}, 3 * target))
    assert simulate(config).rows[-1].cost > 2 * before
    monkeypatch.undo()
    monkeypatch.setattr(autoscale, "target_replicas", lambda *_: Target(20))
    assert simulate(config).rows[0].cost == 1.0
    assert simulate(config).nodes == 4


def test_one_function_serves_production_and_simulation(zones, monkeypatch):
    asked = []

    def place(target, fleet, market, settings, now_s):
        asked.append(now_s)
        return Plan({}, target)

    monkeypatch.setattr(placement, "place", place)
    simulate(SimulateConfig(traces=zones, nodes=4, days=0.05, rows=("ours",)))
    simulated = len(asked)
    steward = Steward(Ground((), "z", cpus=1.0), autoscale.AutoscaleSettings(min_replicas=3), placement.PlacementSettings(), Target(0))
    decision = steward.decide(Sight(123.0, autoscale.Load(0.0), Census(()), {}, {}))
    assert simulated > 0
    assert asked[simulated:] == [123.0]
    assert decision.replicas["on-demand"] == 3


def test_single_requests_tell_the_same_story(zones):
    fluid, single = (simulate(SimulateConfig(traces=zones, nodes=3, days=0.3, rows=("ours",), single=each)) for each in (False, True))
    for one, other in zip(fluid.rows, single.rows, strict=True):
        assert other.requests == pytest.approx(one.requests, rel=0.03)
        assert other.cost == pytest.approx(one.cost, abs=0.03)
        assert other.failed == pytest.approx(one.failed, abs=0.01)


def test_a_week_of_a_hundred_machines_takes_less_than_ten_seconds(zones):
    """All rows; processor time, so that other work on this machine does not count."""
    began_s = time.process_time()
    made = simulate(SimulateConfig(traces=zones, nodes=100, days=7.0))
    assert len(made.rows) == len(ROWS)
    assert time.process_time() - began_s < 10.0


def test_the_command_prints_a_table_and_draws(zones, tmp_path, capsys):
    plot = tmp_path / "spot.png"
    assert sterna.main(["cluster", "simulate", *zones, "--nodes", "4", "--days", "0.1", "--rows", "ours", "--plot", str(plot)]) == 0
    assert "all on demand" in capsys.readouterr().out
    assert plot.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["none.json"], "none.json: no such file"),
        (["--nodes", "0"], "nodes: is 0"),
        (["--days", "-1"], "days: is -1"),
        (["--retries", "2"], "retries must be 0 or 1"),
        (["--plot", "no/such/folder/x.png"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_line(zones, more, message, capsys):
    given = ["cluster", "simulate", *zones, *more] if more[0].startswith("--") else ["cluster", "simulate", *more]
    assert sterna.main([*given, "--days", "0.02"] if "--days" not in more else given) == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in shown


def test_no_trace_is_a_mistake(capsys):
    assert sterna.main(["cluster", "simulate"]) == 2
    assert "traces" in capsys.readouterr().err
