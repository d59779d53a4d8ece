"""`sterna cluster simulate`: recorded spot markets and load, replayed through the very policies that production calls.

Promise: every row gets the same load, the same target from the same autoscaler, the same market and the same luck; rows differ in where
they put machines and in what becomes of requests whose machine goes. `ours` is `cluster.placement.place`, looked up when it is called.
Price: about a second a row for a week of a hundred machines. Source: the comparison in SkyServe (EuroSys 2025), sections 5 and 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from cluster import placement
from cluster.autoscale import AutoscaleSettings, Target
from cluster.baselines import SkyServe, even_spread, on_demand_only, spot_only
from cluster.console import progress
from cluster.demand import Demand, Replica, demand, peak_tokens_per_s, single_requests
from cluster.machines import Fleet
from cluster.market import Market, Pool
from cluster.oracle import oracle_cost
from cluster.placement import PlacementSettings, Plan
from cluster.replay import MarketRules, Policy, Replay, Step, steps
from cluster.requests import Fluid, Requests, Rules
from cluster.requests_single import Single
from cluster.settings import settings
from cluster.simulate_report import Row, Simulation, row_of, write_plot
from cluster.traces import LoadTrace, SpotTrace, read_load, read_spot, steady_load

__all__ = ["ROWS", "SimulateConfig", "simulate"]

RowName = Literal["on-demand", "spot-only", "even-spread", "skyserve", "no-migration", "ours"]
ROWS: tuple[RowName, ...] = ("on-demand", "spot-only", "even-spread", "skyserve", "no-migration", "ours")
LONGEST_DAYS = 366.0


@settings
class SimulateConfig:
    """Replay spot traces and load through the placement policies, and compare cost, failures and waiting."""

    traces: tuple[str, ...]
    """Spot traces, one per zone: JSON with metadata.gap_seconds and data, or CSV lines millisecond,add|remove,node."""
    load: str | None = None
    """Load trace (CSV: TIMESTAMP,ContextTokens,GeneratedTokens), repeated; without one the load is steady."""
    nodes: int = 100
    """Machines that the fleet needs in the load's busiest minute: the load is scaled to this."""
    load_scale: float | None = None
    """How many times the trace's own load, instead of scaling it to `nodes`."""
    diurnal: float = 0.0
    """Swing of a daily wave over the load: 0.5 falls to half at midnight. 0: none."""
    days: float | None = None
    """Simulated days; traces shorter than that begin again. By default the length of the shortest trace."""
    room: float = 1.25
    """What a zone holds at its recorded best, in fleets: a recorder that got all it asked for did not learn how many more there were."""
    machines_per_recorded: float | None = None
    """Instead of `room`: machines to be had for each one in the trace (1: exactly the recorded numbers)."""
    rows: tuple[RowName, ...] = ROWS
    """Which policies to compare; on-demand is the measure of cost and always among them."""
    skyserve_extra: int = 2
    """Spot replicas that the SkyServe-style row keeps beyond the target."""
    single: bool = False
    """Follow every single request instead of a fluid: exact, and slow for large fleets."""
    timeout_s: float = 100.0
    """A request that has waited so long for a place fails."""
    retries: int = 1
    """How often the clients of the baselines send a request again that was cut off: 0 or 1."""
    seed: int = 0
    """Decides which preemptions come with notice and which machines of a zone go."""
    plot: str | None = None
    """Write a picture (PNG or SVG) of the comparison to this file."""
    market: MarketRules = MarketRules()
    """Prices, cold starts and notices."""
    replica: Replica = Replica()
    """What one replica does."""
    autoscale: AutoscaleSettings = AutoscaleSettings()
    """How the target follows the load; the replica's figures are taken from `replica`."""
    placement: PlacementSettings = PlacementSettings()
    """How much safety ours buys; cold start, patience and utilization are taken from the settings above."""

    def __post_init__(self) -> None:
        if not self.traces:
            raise ValueError("traces: name at least one spot trace, such as data/traces/spot/sky-4node-us-west-2c.json")
        if self.nodes < 1 or self.nodes > 100_000:
            raise ValueError(f"nodes: is {self.nodes}; use 1 to 100000")
        if self.days is not None and not 0 < self.days <= LONGEST_DAYS:
            raise ValueError(f"days: is {self.days}; must be above 0 and at most {LONGEST_DAYS:g}")
        if self.load_scale is not None and not self.load_scale > 0:
            raise ValueError(f"load_scale: is {self.load_scale}; must be above 0")
        if not 0 <= self.diurnal <= 1 or not self.room > 0 or not self.timeout_s > 0:
            raise ValueError("diurnal must lie between 0 and 1, room and timeout_s above 0")
        if self.machines_per_recorded is not None and not self.machines_per_recorded > 0:
            raise ValueError(f"machines_per_recorded: is {self.machines_per_recorded}; must be above 0")
        if self.retries not in (0, 1) or self.skyserve_extra < 0:
            raise ValueError("retries must be 0 or 1, skyserve_extra not negative")


@dataclass(frozen=True, slots=True)
class _World:
    """What all rows share."""

    config: SimulateConfig
    load: LoadTrace
    demand: Demand
    changes: list[Step]
    pools: tuple[Pool, ...]
    autoscale: AutoscaleSettings
    placement: PlacementSettings
    nodes: int


def simulate(config: SimulateConfig) -> Simulation:
    """Replay the traces once per row."""
    traces = [read_spot(path) for path in config.traces]
    world = _world(config, traces)
    names = tuple(dict.fromkeys(("on-demand", *config.rows)))
    rows: list[Row] = []
    runs: dict[str, Replay] = {}
    with progress("simulate", len(names) * world.demand.end_s, "s of service") as advance:
        for name in names:
            runs[name] = _run(world, name, advance)
            rows.append(row_of(name, runs[name], runs["on-demand"].cost, world.demand.prefill_s))
    oracle = oracle_cost(traces, runs["on-demand"], world.demand, config.replica, config.market, _scale_of(config, world.nodes))
    made = Simulation(tuple(t.zone for t in traces), world.demand.end_s / 86400, world.nodes, tuple(rows), *oracle)
    if config.plot:
        write_plot(made, runs, config.plot)
    return made


def _world(config: SimulateConfig, traces: list[SpotTrace]) -> _World:
    scaling = replace(config.autoscale, replica_tokens_per_s=config.replica.tokens_per_s)
    load = read_load(config.load) if config.load else steady_load()
    per_node = scaling.replica_tokens_per_s * scaling.utilization
    scale = config.load_scale or config.nodes * per_node / peak_tokens_per_s(load)
    nodes = max(1, round(scale * peak_tokens_per_s(load) / per_node))
    seconds = (config.days or min(min(trace.end_s for trace in traces) / 86400, LONGEST_DAYS)) * 86400
    wanted = demand(load, config.replica, seconds=seconds, scale=scale, diurnal=config.diurnal)
    changes = steps(traces, seconds=wanted.end_s, machines_each=_scale_of(config, nodes), rules=config.market, seed=config.seed)
    chosen = placement.fitted(
        config.placement, utilization=scaling.utilization, cold_start_s=config.market.cold_start_s, patience_s=config.timeout_s
    )
    return _World(config, load, wanted, changes, tuple(Pool(trace.zone) for trace in traces), scaling, chosen, nodes)


def _scale_of(config: SimulateConfig, nodes: int) -> Callable[[SpotTrace], float]:
    """Machines to be had for each one in a trace."""
    fixed = config.machines_per_recorded
    return lambda trace: fixed if fixed is not None else nodes * config.room / trace.most


def _run(world: _World, name: RowName, advance: Callable[..., None]) -> Replay:
    config = world.config
    rules = Rules(
        timeout_s=config.timeout_s,
        migrates=name == "ours",
        heeds_notice=name in ("ours", "no-migration"),
        retries=config.retries,
    )
    requests: Requests
    if config.single:
        every = single_requests(world.load, config.replica, seconds=world.demand.end_s, scale=world.demand.scale, seed=config.seed)
        requests = Single(every, world.demand, rules, config.replica.streams)
    else:
        requests = Fluid(world.demand, rules, config.replica.streams)
    replay = Replay(
        _policy(world, name), requests, rules, config.market, world.autoscale, world.pools, placement=world.placement, seed=config.seed
    )
    replay.target = Target(world.nodes)
    done = 0.0

    def note(at_s: float) -> None:
        nonlocal done
        advance(at_s - done, note=name)
        done = at_s

    replay.run(world.changes, world.demand.end_s, note)
    note(world.demand.end_s)
    return replay


def _policy(world: _World, name: RowName) -> Policy:

    def ours(target: int, fleet: Fleet, market: Market, now_s: float) -> Plan:
        return placement.place(target, fleet, market, world.placement, now_s)

    policies: dict[str, Policy] = {
        "on-demand": on_demand_only,
        "spot-only": spot_only,
        "even-spread": even_spread,
        "skyserve": SkyServe(world.config.skyserve_extra),
    }
    return policies.get(name, ours)
