"""What there is to stand on: node types, pools and prices on one side, Ray's nodes and the service's replicas on the other.

Promise: pure. `Ground.fleet` says in the policies' terms (`Machine`, `Pool`) what the cluster and the replicas' reports show:
replicas that serve, replicas on machines that will go, and those still awaited, on machines that live or are being started.
A node without a market label (a laptop) counts as whatever its replica's deployment is, in the pool `local`.
Price: one pass over nodes and reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.census import Census, Node
from cluster.machines import Fleet, Machine, NodeType
from cluster.market import ON_DEMAND, SPOT, Market, MarketKind, Observations, Offer, Pool

__all__ = ["DEPLOYMENTS", "LOCAL", "MARKET_LABEL", "POOL_LABEL", "Ground"]

MARKET_LABEL = "ray.io/market-type"
POOL_LABEL = "sterna.io/pool"
"""Node label with the node type's own name, so that machines of exactly that type can be asked for."""
LOCAL = Pool("local")
"""Where machines are that no node type describes."""
DEPLOYMENTS: dict[str, MarketKind] = {"spot": SPOT, "on_demand": ON_DEMAND}
"""The deployments of engines, and the market of each."""
_CPU_HOUR = 0.05
_SPOT_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Ground:
    """What may be rented, and how large a replica is."""

    types: tuple[NodeType, ...] = ()
    zone: str = "local"
    cpus: float = 1.0
    """Of one replica."""
    gpus: float = 0.0
    prices: Mapping[str, float] = field(default_factory=dict)
    """Dollars per hour of a whole machine, by node type; a guess by its CPUs where it is not given."""

    def market(self, observed: Observations) -> Market:
        """Every pool's offer; without node types, the pool `local` at either price."""
        offers = [
            Offer(self._pool(t.name), t.market, self._price(t), t.max_workers * slots)
            for t in self.types
            if (slots := t.replicas(cpus=self.cpus, gpus=self.gpus))
        ]
        local = [Offer(LOCAL, SPOT, _SPOT_SHARE * _CPU_HOUR * self.cpus), Offer(LOCAL, ON_DEMAND, _CPU_HOUR * self.cpus)]
        return Market(tuple(offers or local), observed)

    def fleet(self, census: Census, replicas: Mapping[str, Mapping[str, Any]], wanted: Mapping[MarketKind, int], now_s: float) -> Fleet:
        """Machines that hold a replica, and as many starting ones as `wanted` replicas lack, where there is a place for them.

        `replicas` are the reports of running ones, by replica: {"node_id", "deployment", "leaving"}.
        """
        nodes = {node.node_id: node for node in census.nodes}
        held: Counter[str] = Counter()
        machines: list[Machine] = []
        for _, report in sorted(replicas.items()):
            if (node := nodes.get(report["node_id"])) is None:
                continue  # dead; the report is a last word
            market = self._market_of(node) or DEPLOYMENTS[report["deployment"]]
            machines.append(
                self._machine(node, held[node.node_id], market, "draining" if node.draining or report["leaving"] else "ready", now_s)
            )
            held[node.node_id] += 1
        for market in (SPOT, ON_DEMAND):
            lacking = wanted.get(market, 0) - sum(m.market == market and m.state == "ready" for m in machines)
            taken = {m.machine_id for m in machines}
            free = (machine for machine in self._free(census, market, held, now_s) if machine.machine_id not in taken)
            machines += [machine for _, machine in zip(range(lacking), free, strict=False)]
        return Fleet(tuple(machines))

    def _free(self, census: Census, market: MarketKind, held: Mapping[str, int], now_s: float) -> Iterator[Machine]:
        """Places for replicas still awaited: on living nodes, then on those being started."""
        for node in census.nodes:
            if not node.draining and self._market_of(node) in (market, None):
                for slot in range(held.get(node.node_id, 0), self._slots(node.resources)):
                    yield self._machine(node, slot, market, "starting", now_s)
        for kind in self.types:
            if kind.market == market:
                for number in range(census.launching.get(kind.name, 0) * kind.replicas(cpus=self.cpus, gpus=self.gpus)):
                    yield Machine(f"launching {kind.name}/{number}", self._pool(kind.name), market, "starting", now_s, self._price(kind))

    def node_of(self, machine_id: str) -> str:
        """The Ray node of a machine of `fleet`; empty for one that is being started."""
        return "" if machine_id.startswith("launching ") else machine_id.partition("/")[0]

    def belongs(self, node: Node, num_replicas: int) -> bool:
        """Whether a node was started for replicas and runs nothing but `num_replicas` of them, so that it may be given back."""
        typed = any(kind.name == node.node_type for kind in self.types)
        used = {name: node.resources.get(name, 0) - node.free.get(name, 0) for name in ("CPU", "GPU")}
        return typed and used["CPU"] <= num_replicas * self.cpus + 1e-6 and used["GPU"] <= num_replicas * self.gpus + 1e-6

    def _machine(self, node: Node, slot: int, market: MarketKind, state: str, now_s: float) -> Machine:
        kind = next((t for t in self.types if t.name == node.node_type), None)
        pool, price = (LOCAL, 0.0) if kind is None else (self._pool(kind.name), self._price(kind))
        return Machine(f"{node.node_id}/{slot}", pool, market, state, now_s, price)  # type: ignore[arg-type]  # one of State's words

    def _market_of(self, node: Node) -> MarketKind | None:
        label = node.labels.get(MARKET_LABEL)
        return SPOT if label == SPOT else ON_DEMAND if label == ON_DEMAND else None

    def _slots(self, resources: Mapping[str, float]) -> int:
        return NodeType("", "", ON_DEMAND, resources, 0, 1).replicas(cpus=self.cpus, gpus=self.gpus)

    def _pool(self, node_type: str) -> Pool:
        return Pool(self.zone, node_type)

    def _price(self, kind: NodeType) -> float:
        """Per replica's share and hour."""
        guess = kind.resources.get("CPU", 1.0) * _CPU_HOUR * (_SPOT_SHARE if kind.market == SPOT else 1.0)
        return self.prices.get(kind.name, guess) / max(1, kind.replicas(cpus=self.cpus, gpus=self.gpus))
