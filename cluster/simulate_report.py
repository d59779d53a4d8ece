"""What a simulation found: a table for people, the same as JSON, and a picture.

Promise: costs are shares of serving everything on demand under the same load; failures, delays and moves are shares of the requests;
a request that failed without a first token counts in the waiting times, with all its patience.
Price: none; the picture's is matplotlib (cluster/plot.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.plot import picture
from cluster.replay import Replay

__all__ = ["Row", "Simulation", "row_of", "write_plot"]

TITLES = {
    "on-demand": "all on demand",
    "spot-only": "spot only",
    "even-spread": "even spread",
    "skyserve": "SkyServe-style",
    "no-migration": "ours, migration off",
    "ours": "ours",
}
COLUMNS = ("policy", "cost", "available", "failed", "delayed", "migrated", "resumed", "retried", "TTFT p50", "p99", "preempted")
PICTURE_POINTS = 2000


@dataclass(frozen=True, slots=True)
class Row:
    """One policy's outcome; shares are of the requests that came."""

    name: str
    cost: float
    """Share of the all-on-demand cost."""
    available: float
    """Share of the time in which the ready replicas could carry the load that came."""
    failed: float
    delayed: float
    migrated: float
    """Moved off a machine that was given notice."""
    resumed: float
    """Went on from their record after a death without notice."""
    retried: float
    """Sent again by the client."""
    ttft_p50_s: float
    """Of all requests, also those that failed before their first token: they count as having waited for as long as they could."""
    ttft_p99_s: float
    preempted: int
    """Machines that the market took."""
    requests: float


@dataclass(frozen=True, slots=True)
class Simulation:
    """The comparison."""

    zones: tuple[str, ...]
    days: float
    nodes: int
    rows: tuple[Row, ...]
    oracle: float
    """Cost share of one who knows the future and holds the same target."""
    oracle_bare: float
    """Cost share of one who knows the future and holds no headroom: no policy that serves everything costs less."""

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def __str__(self) -> str:
        zones = f"{len(self.zones)} zone{'s' if len(self.zones) > 1 else ''}"
        lines = [f"{zones}, {self.days:.1f} days, up to {self.nodes} machines: {', '.join(self.zones)}"]
        table = [COLUMNS, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in table) for column in range(len(COLUMNS))]
        lines += [
            "  ".join(cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
            for line in table
        ]
        lines.append(f"oracle: {self.oracle:.3f} with the same target and no cold starts; {self.oracle_bare:.3f} without any headroom")
        return "\n".join(lines)


def row_of(name: str, replay: Replay, whole: float, prefill_s: float) -> Row:
    """A run's figures; `whole` is the cost of the all-on-demand run."""
    books = replay.requests.books
    came = max(books.arrived, 1e-9)
    p50, p99 = books.wait_quantiles(0.5, 0.99)
    return Row(
        name=name,
        cost=replay.cost / whole if whole else 1.0,
        available=replay.able_s / replay.now_s if replay.now_s else 1.0,
        failed=books.failed / came,
        delayed=books.delayed / came,
        migrated=books.migrated / came,
        resumed=books.resumed / came,
        retried=books.retried / came,
        ttft_p50_s=p50 + prefill_s,
        ttft_p99_s=p99 + prefill_s,
        preempted=replay.preempted,
        requests=books.arrived,
    )


def _cells(row: Row) -> tuple[str, ...]:
    shares = (f"{100 * value:.3f} %" for value in (row.failed, row.delayed, row.migrated, row.resumed, row.retried))
    times = (f"{row.ttft_p50_s:.1f} s", f"{row.ttft_p99_s:.1f} s")
    return (TITLES[row.name], f"{row.cost:.3f}", f"{100 * row.available:.2f} %", *shares, *times, f"{row.preempted}")


def write_plot(made: Simulation, runs: Mapping[str, Replay], path: str) -> None:
    """Cost against failures, and ours over time."""
    with picture(path, 1, 2, figsize=(12, 4.2), width_ratios=(1, 1.6)) as (figure, (left, right)):
        for row in made.rows:
            at = (row.cost, max(100 * row.failed, 1e-4))
            left.scatter(*at, s=50, color="tab:red" if row.name == "ours" else "tab:grey")
            beside = {"no-migration": (-6, -12), "on-demand": (-6, 6)}.get(row.name)
            shift, side = (beside, "right") if beside else ((6, 4), "left")
            left.annotate(TITLES[row.name], at, textcoords="offset points", xytext=shift, ha=side, fontsize=8)
        left.axvline(0.55, color="tab:green", lw=0.8, ls="--")
        left.axhline(0.1, color="tab:green", lw=0.8, ls="--")
        left.set(yscale="log", xlabel="cost, all on demand = 1", ylabel="failed requests, %", title="what it costs, what fails")
        _fleet(right, runs.get("ours") or runs["on-demand"])
        figure.suptitle(", ".join(made.zones), fontsize=9)
        figure.tight_layout()


def _fleet(axes: Any, replay: Replay) -> None:
    samples = replay.samples[:: max(1, len(replay.samples) // PICTURE_POINTS)]
    hours = [sample.at_s / 3600 for sample in samples]
    series = ([s.spot_ready for s in samples], [s.on_demand_ready for s in samples])
    axes.stackplot(hours, *series, labels=("spot", "on demand"), colors=("tab:blue", "tab:orange"), step="post", lw=0)
    axes.plot(hours, [s.target for s in samples], color="black", lw=0.6, label="target")
    axes.set(xlabel="hours", ylabel="machines that serve", title="ours over time")
    axes.legend(loc="lower right", fontsize=8)
