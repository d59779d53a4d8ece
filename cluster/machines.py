"""Machines: the ones a service has, and the kinds it may ask for.

Promise: `Machine` and `Fleet` are what the policies see of the world; `node_types` reads the kinds from cluster.yaml, so that the
autoscaler, the policies and the simulator mean the same thing by a name. A machine here holds one replica; one that holds
several is as many entries with the same `node_id`. Price: none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from cluster.market import ON_DEMAND, SPOT, MarketKind, Pool

__all__ = ["Fleet", "Machine", "NodeType", "node_types"]

State = Literal["starting", "ready", "draining"]
STATES: tuple[State, ...] = ("starting", "ready", "draining")
_MARKET_LABEL = "ray.io/market-type"


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that is paid for, and holds (or will hold) one replica."""

    machine_id: str
    pool: Pool
    market: MarketKind
    state: State
    """draining: it leaves, by our will or the market's; it is not counted on, but serves until `placement.drain_at`."""
    since_s: float
    """When it was asked for."""
    price_per_hour: float = 0.0


_NONE: Mapping[Pool, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Fleet:
    """Every machine that is paid for; counted once, when it is made."""

    machines: tuple[Machine, ...] = ()
    _counts: Mapping[tuple[MarketKind, State], Mapping[Pool, int]] = field(init=False, repr=False, compare=False)
    _totals: Mapping[tuple[MarketKind, State], int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        counts: dict[tuple[MarketKind, State], dict[Pool, int]] = {}
        for (market, state, pool), number in Counter((m.market, m.state, m.pool) for m in self.machines).items():
            counts.setdefault((market, state), {})[pool] = number
        object.__setattr__(self, "_counts", counts)
        object.__setattr__(self, "_totals", {key: sum(by_pool.values()) for key, by_pool in counts.items()})

    def count(self, market: MarketKind, *states: State) -> int:
        """Machines of a market in any of these states (all, if none is named)."""
        return sum([self._totals.get((market, state), 0) for state in states or STATES])

    def by_pool(self, market: MarketKind, *states: State) -> dict[Pool, int]:
        """The same count for each pool that has any."""
        if len(states) == 1:
            return dict(self._counts.get((market, states[0]), _NONE))
        counts: dict[Pool, int] = {}
        for state in states or STATES:
            for pool, number in self._counts.get((market, state), _NONE).items():
                counts[pool] = counts.get(pool, 0) + number
        return counts


@dataclass(frozen=True, slots=True)
class NodeType:
    """A kind of machine that Ray's autoscaler may start."""

    name: str
    """Its key under available_node_types."""
    instance_type: str
    market: MarketKind
    resources: Mapping[str, float]
    min_workers: int
    max_workers: int

    def replicas(self, *, cpus: float, gpus: float = 0.0) -> int:
        """How many replicas of this size one such machine holds."""
        sizes = [self.resources.get(name, 0) // need for name, need in (("CPU", cpus), ("GPU", gpus)) if need > 0]
        return int(min(sizes)) if sizes else 0


def node_types(document: Mapping[str, Any], *, where: str = "cluster.yaml") -> tuple[NodeType, ...]:
    """The worker types of a cluster file that could hold a replica, in its order; ValueError names what is wrong with it."""
    kinds = document.get("available_node_types")
    if not isinstance(kinds, Mapping) or not kinds:
        raise ValueError(f"{where}: has no available_node_types; is it a file for `ray up`?")
    return tuple(_node_type(name, kind, document, where) for name, kind in kinds.items() if _holds_replicas(name, kind, document))


def _holds_replicas(name: str, kind: Any, document: Mapping[str, Any]) -> bool:
    role = kind.get("labels", {}).get("sterna.io/role", "worker") if isinstance(kind, Mapping) else "worker"
    return bool(name != document.get("head_node_type") and role == "worker")


def _node_type(name: str, kind: Any, document: Mapping[str, Any], where: str) -> NodeType:
    if not isinstance(kind, Mapping):
        raise ValueError(f"{where}: available_node_types.{name} is not a table")
    market = kind.get("labels", {}).get(_MARKET_LABEL, ON_DEMAND)
    if market not in (SPOT, ON_DEMAND):
        raise ValueError(f"{where}: {name}: label {_MARKET_LABEL} is {market!r}; use {SPOT!r} or {ON_DEMAND!r}")
    most = kind.get("max_workers", document.get("max_workers", 0))
    instance_type = kind.get("node_config", {}).get("InstanceType", name)
    resources = {key: float(value) for key, value in kind.get("resources", {}).items()}
    return NodeType(name, instance_type, market, resources, int(kind.get("min_workers", 0)), int(most))


def zones(document: Mapping[str, Any]) -> Sequence[str]:
    """The zones in which a cluster file may start machines; its region where it names none."""
    provider = document.get("provider", {})
    listed = [zone.strip() for zone in str(provider.get("availability_zone", "")).split(",") if zone.strip()]
    return listed or [str(provider.get("region", "local"))]
