"""The comparison of policies: everyone is served, the same work for all, and each policy does what it is for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.policies import Figures, compare, plan_costs, read_trace


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figures]:
    """Two kinds of requests, told apart by their prompts: long ones with short answers, short ones with long answers."""
    rng, trace = random.Random(0), tmp_path_factory.mktemp("trace") / "trace.csv"
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for i in range(500):
        brief = rng.random() < 0.6
        sizes = (rng.randint(500, 600), rng.randint(5, 20)) if brief else (rng.randint(90, 110), rng.randint(150, 250))
        lines.append(f"2023-11-16 18:{i // 60:02}:{i % 60:02}.0000000,{sizes[0]},{sizes[1]}")
    trace.write_text("\n".join(lines) + "\n")
    return {row.policy: row for row in compare(read_trace(trace, count=500, load=1.5, seed=0))}


def test_the_shortest_first_wait_least_on_average_and_nobody_for_ever(rows: dict[str, Figures]) -> None:
    assert rows["shortest"].mean_latency_s < 0.85 * rows["fcfs"].mean_latency_s
    assert rows["oracle"].mean_latency_s < 0.85 * rows["fcfs"].mean_latency_s
    assert rows["shortest"].max_latency_s < 2 * rows["fcfs"].max_latency_s


def test_fair_shares_protect_light_clients_from_a_heavy_one(rows: dict[str, Figures]) -> None:
    assert rows["fair"].light_latency_s < 0.6 * rows["fcfs"].light_latency_s


def test_in_order_of_arrival_hardly_anyone_is_overtaken(rows: dict[str, Figures]) -> None:
    assert rows["fcfs"].max_overtaken < 10 < rows["shortest"].max_overtaken


def test_only_the_lines_asked_for_are_read(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"2023-11-16 18:15:0{i}.0000000,10,2\n" for i in range(9)))
    jobs = read_trace(trace, count=4, load=1.0, seed=1)
    assert [job.num_inputs for job in jobs] == [10] * 4
    assert jobs[0].arrived_s == 0 < jobs[-1].arrived_s


def test_the_cost_of_planning_is_measured_for_every_policy() -> None:
    rows = plan_costs([40])
    assert [row.policy for row in rows] == ["fcfs", "fair", "shortest", "priority", "fair, each"]
    assert all(0 < row.plan_us <= row.longest_plan_us and row.add_us > 0 and row.drop_us > 0 for row in rows)
