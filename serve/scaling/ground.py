"""What there is to stand on: node types, pools and prices on one side, Ray's nodes and the service's replicas on the other.

Promise: pure. `Ground.fleet` says in the policies' terms (`Machine`, `Pool`) what the cluster and the replicas' reports show:
replicas that serve, replicas on machines that will go (drained, or given notice), and those still awaited, on machines that live or are
being started. A place that somebody else works in is no place to await a replica on.
A node without a market label (a laptop) counts as whatever its replica's deployment is, in the pool `local`.
Price: one pass over nodes and reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
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
    """Of node types that are in no zone of their own."""
    cpus: float = 1.0
    """Of one replica."""
    gpus: float = 0.0
    prices: Mapping[str, float] = field(default_factory=dict)
    """Dollars per hour of a whole machine, by node type; a guess by its CPUs where it is not given."""
    zones: Mapping[str, str] = field(default_factory=dict)
    """Of node types that are in a zone of their own, by node type."""

    def market(self, observed: Observations) -> Market:
        """Every pool's offer; without node types, the pool `local` at either price."""
        offers = [
            Offer(self._pool(t.name), t.market, self._price(t), t.max_workers * slots)
            for t in self.types
            if (slots := t.replicas(cpus=self.cpus, gpus=self.gpus))
        ]
        local = [Offer(LOCAL, SPOT, _SPOT_SHARE * _CPU_HOUR * self.cpus), Offer(LOCAL, ON_DEMAND, _CPU_HOUR * self.cpus)]
        return Market(tuple(offers or local), observed)

    def fleet(
        self, census: Census, replicas: Mapping[str, Mapping[str, Any]], wanted: Mapping[MarketKind, int], now_s: float, *,
        others: Mapping[str, int] | None = None,
    ) -> Fleet:  # fmt: skip
        """Machines that hold a replica, and as many starting ones as `wanted` replicas lack, where there is a place for them.

        `replicas` are the reports of running ones, by replica: {"node_id", "deployment", "leaving"}; `others` are the places of each node
        that somebody else uses.
        """
        nodes = {node.node_id: node for node in census.nodes}
        held: Counter[str] = Counter()
        machines: list[Machine] = []
        for _, report in sorted(replicas.items()):
            if (node := nodes.get(report["node_id"])) is None:
                continue  # dead; the report is a last word
            goes = node.draining or node.leaving or report["leaving"]
            machines.append(self._machine(node, held[node.node_id], self._market(node, report), "draining" if goes else "ready", now_s))
            held[node.node_id] += 1
        noticed = self.noticed(census, replicas)
        for market in (SPOT, ON_DEMAND):
            serving = sum(m.market == market and m.state == "ready" for m in machines) + noticed[market]
            taken = {m.machine_id for m in machines}
            free = (m for m in self._free(census, market, held, others or {}, now_s) if m.machine_id not in taken)
            machines += islice(free, max(0, wanted.get(market, 0) - serving))
        return Fleet(tuple(machines))

    def noticed(self, census: Census, replicas: Mapping[str, Mapping[str, Any]]) -> Counter[MarketKind]:
        """Replicas, by market, on machines that will be gone and do not drain yet: Serve counts them still, the policies do not."""
        leaving = {node.node_id: node for node in census.nodes if node.leaving}
        homes = ((leaving.get(report["node_id"]), report) for report in replicas.values() if not report["leaving"])
        return Counter(self._market(node, report) for node, report in homes if node is not None)

    def places(self, census: Census) -> Counter[tuple[MarketKind, Pool]]:
        """Places for replicas on machines that will be gone and do not drain yet: Ray counts them still."""
        found: Counter[tuple[MarketKind, Pool]] = Counter()
        for node in census.nodes:
            if node.leaving and (market := self._label(node)):
                found[market, self._pool(node.node_type)] += self._slots(node.resources)
        return found

    def others(
        self, census: Census, replicas: Mapping[str, Mapping[str, Any]], before: Mapping[str, int], *, settled: bool
    ) -> dict[str, int]:
        """How many places of each node somebody else works in, given how many it was `before`.

        A replica that is being loaded has a place and has not reported yet, as if somebody else had it; so the number grows only while no
        replica is awaited (`settled`).
        """
        held = Counter(report["node_id"] for report in replicas.values())
        used = {n.node_id: self._slots(n.resources) - self._slots(n.free) - held[n.node_id] for n in census.nodes}
        found = {node: count if settled else min(count, before.get(node, 0)) for node, count in used.items()}
        return {node: count for node, count in found.items() if count > 0}

    def _free(
        self, census: Census, market: MarketKind, held: Mapping[str, int], others: Mapping[str, int], now_s: float
    ) -> Iterator[Machine]:
        """Places for replicas still awaited: on living nodes, then on those being started."""
        for node in census.nodes:
            if not node.draining and not node.leaving and self._label(node) in (market, None):
                for slot in range(held.get(node.node_id, 0), self._slots(node.resources) - others.get(node.node_id, 0)):
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

    def _market(self, node: Node, report: Mapping[str, Any]) -> MarketKind:
        return self._label(node) or DEPLOYMENTS[report["deployment"]]

    def _label(self, node: Node) -> MarketKind | None:
        label = node.labels.get(MARKET_LABEL)
        return SPOT if label == SPOT else ON_DEMAND if label == ON_DEMAND else None

    def _slots(self, resources: Mapping[str, float]) -> int:
        return NodeType("", "", ON_DEMAND, resources, 0, 1).replicas(cpus=self.cpus, gpus=self.gpus)

    def _pool(self, node_type: str) -> Pool:
        return Pool(self.zones.get(node_type, self.zone), node_type)

    def _price(self, kind: NodeType) -> float:
        """Per replica's share and hour."""
        guess = kind.resources.get("CPU", 1.0) * _CPU_HOUR * (_SPOT_SHARE if kind.market == SPOT else 1.0)
        return self.prices.get(kind.name, guess) / max(1, kind.replicas(cpus=self.cpus, gpus=self.gpus))
