"""Every given spot trace alone and together: ours beside SkyServe's rule and an oracle, on the same load.

    python -m benchmarks.spot --data ../shared/data/traces --days 14 --json runs/spot.json

One line per set of zones; a set meets the goal with a cost of at most 0.55 of all on demand and at most 0.1 % failed requests, and is
marked infeasible where even one who knows the future, needs no cold start and holds no headroom would pay more. Minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cluster.simulate import SimulateConfig, simulate
from cluster.simulate_report import Simulation

GOAL_COST, GOAL_FAILED = 0.55, 0.001
HEAD = (
    f"{'zones':44} {'days':>5} {'oracle':>7} {'bare':>6} | {'SkyServe':>8} {'failed':>8} {'p99':>6} | {'ours':>8} {'failed':>8} {'p99':>6}"
)


def sets(folder: Path) -> list[list[Path]]:
    """Each trace alone; then those of one recording together, by pairs and all."""
    files = sorted([*folder.glob("*.json"), *folder.glob("*.csv")])
    recordings: dict[str, list[Path]] = {}
    for file in files:
        recordings.setdefault(file.name.split("-us-")[0], []).append(file)
    together = [files for files in recordings.values() if len(files) > 1]
    pairs = [[a, b] for files in together for i, a in enumerate(files) for b in files[i + 1 :]]
    return [[file] for file in files] + pairs + [files for files in together if len(files) > 2]


def line(made: Simulation) -> str:
    """One set of zones."""
    rows = {row.name: row for row in made.rows}
    sky, ours = rows["skyserve"], rows["ours"]
    name = " + ".join(zone.removeprefix("us-") for zone in made.zones)
    figures = " | ".join(f"{row.cost:8.3f} {100 * row.failed:6.3f} % {row.ttft_p99_s:4.0f} s" for row in (sky, ours))
    return f"{name[:44]:44} {made.days:5.1f} {made.oracle:7.3f} {made.oracle_bare:6.3f} | {figures}  {verdict(made)}"


def verdict(made: Simulation) -> str:
    """What was asked, and whether it holds."""
    rows = {row.name: row for row in made.rows}
    sky, ours = rows["skyserve"], rows["ours"]
    goal = ours.cost <= GOAL_COST and ours.failed <= GOAL_FAILED
    beaten = ours.cost <= sky.cost and ours.failed <= sky.failed
    met = "goal met" if goal else "infeasible" if made.oracle_bare > GOAL_COST else "goal missed"
    return f"{met}; {'no worse than SkyServe' if beaten else 'WORSE THAN SKYSERVE'}"


def main() -> None:
    """Run all sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with spot/ and load/")
    parser.add_argument("--days", type=float, help="simulated days; by default each set's shortest trace")
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    load, found = str(next(iter(sorted((options.data / "load").glob("*.csv"))))), []
    configs = [
        SimulateConfig(traces=tuple(map(str, files)), load=load, nodes=options.nodes, days=options.days, rows=("skyserve", "ours"))
        for files in sets(options.data / "spot")
    ]
    print(HEAD, flush=True)
    with ProcessPoolExecutor() as workers:
        for made in workers.map(simulate, configs):
            found.append(made)
            print(line(made), flush=True)
    if options.json:
        options.json.write_text(json.dumps([made.summary() | {"verdict": verdict(made)} for made in found], indent=1))


if __name__ == "__main__":
    main()
