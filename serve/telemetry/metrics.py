"""The service's figures, as Prometheus reads them at any gateway's /metrics, and the replicas' also at Ray's own exporter.

Promise: /metrics at one gateway shows all of them: every gateway's own figures (label `gateway`), every replica's engine (labels `replica`,
`node`, `market`), so that it does not matter which one the proxy asks; one that does not answer within `PATIENCE_S` is left out. No figure
carries a prompt, a text, a client or a key. Price: 2 microseconds per frame of tokens; a scrape costs a Serve call per process.
Source: Prometheus' conventions for names; prometheus_client, which Ray itself uses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any

import ray.util.metrics
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from serve.limits.admission import Admission, Reason

__all__ = ["PATIENCE_S", "GatewayMetrics", "ReplicaMetrics", "answers", "page"]

PATIENCE_S = 2.0
TTFT_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
GAP_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
LEVELS = {
    "running": "sequences that run",
    "waiting": "sequences that wait for a place or for blocks",
    "total_blocks": "KV blocks there are",
    "free_blocks": "KV blocks that hold nothing",
    "cached_blocks": "KV blocks that hold a prefix nobody uses now",
    "held_blocks": "KV blocks in use",
    "swapped_blocks": "KV blocks in host memory",
    "pinned_blocks": "KV blocks kept for streams that are on their way",
    "clients": "clients that share fairly",
    "prompt_tokens_per_s": "prompt tokens that a second computes",
    "link_bytes_per_s": "bytes of KV that a second brings from another replica",
}
"""What an engine reports as it is now; whatever else it counts only grows."""
LABELS = ("replica", "node", "market")


class GatewayMetrics:
    """One gateway's own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._prompt = Counter("sterna_prompt_tokens", "prompt tokens of requests let in", registry=registry)
        self._tokens = Counter("sterna_tokens", "tokens sent to clients", registry=registry)
        self._requests = Counter("sterna_requests", "answered requests", ["path", "status"], registry=registry)
        self._refused = Counter("sterna_refused", "requests not let in", ["reason"], registry=registry)
        self._left = Counter("sterna_clients_gone", "requests whose client went away before the end of the answer", registry=registry)
        self._ttft = Histogram("sterna_ttft_seconds", "from a request's headers to its first token", buckets=TTFT_S, registry=registry)
        self._gap = Histogram("sterna_inter_token_seconds", "between tokens, mean of a frame", buckets=GAP_S, registry=registry)
        self._moves = Counter("sterna_migrations", "streams that went on at another replica", ["how"], registry=registry)
        self._resume = Histogram("sterna_resume_gap_seconds", "between tokens over a move", ["how"], buckets=TTFT_S, registry=registry)

    def watch(self, admission: Admission) -> None:
        """Show what waits and runs at this door."""
        streams = Gauge("sterna_streams", "streams in the making", registry=self.registry)
        streams.set_function(lambda: len(admission.streams))
        waiting = Gauge("sterna_queue_streams", "streams without a first token", registry=self.registry)
        waiting.set_function(lambda: sum(stream.first_s is None for stream in admission.streams.values()))
        embeddings = Gauge("sterna_embedding_requests", "requests for embeddings in the making", registry=self.registry)
        embeddings.set_function(lambda: len(admission.backlog))

    def refused(self, reason: Reason) -> None:
        """A request was not let in."""
        self._refused.labels(reason).inc()

    def admitted(self, num_prompt: int) -> None:
        """One was."""
        self._prompt.inc(num_prompt)

    def heard(self, num_tokens: int, since_s: float, *, first: bool) -> None:
        """A stream got tokens."""
        self._tokens.inc(num_tokens)
        if first:
            self._ttft.observe(since_s)
        else:
            self._gap.observe(since_s / num_tokens)

    def answered(self, path: str, status: int | None) -> None:
        """A request is over; without a status its client went away before the end of the answer."""
        if status is None:
            self._left.inc()
        else:
            self._requests.labels(path, str(status)).inc()

    def moved(self, how: str, gap_s: float) -> None:
        """A stream went on elsewhere (kv, recompute or crash), `gap_s` after its token before."""
        self._moves.labels(how).inc()
        self._resume.labels(how).observe(gap_s)

    @property
    def num_tokens(self) -> float:
        """Tokens sent."""
        return self.registry.get_sample_value("sterna_tokens_total") or 0.0

    @property
    def num_overloaded(self) -> float:
        """Requests turned away for want of capacity."""
        return sum(self.registry.get_sample_value("sterna_refused_total", {"reason": reason}) or 0.0 for reason in ("queue", "ttft"))

    def families(self) -> list[Metric]:
        """All of it as data that travels to another gateway."""
        return list(self.registry.collect())


async def answers(calls: Iterable[Awaitable[list[Any]]]) -> list[Any]:
    """What the processes asked (`DeploymentHandle.broadcast(…).results_async`) have answered; those that failed are left out."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    return [answer for each in found if isinstance(each, list) for answer in each if not isinstance(answer, BaseException)]


def page(
    gateways: Sequence[tuple[str, list[Metric]]], replicas: Sequence[Mapping[str, Any]], costs: Mapping[str, Any] | None = None
) -> bytes:
    """The text that Prometheus reads, from each gateway's name and families, each replica's stats and the books' costs, if they answer."""
    families: dict[str, Metric] = {}
    for gateway, metrics in gateways:
        for metric in metrics:
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            family.samples += [sample._replace(labels={**sample.labels, "gateway": gateway}) for sample in metric.samples]
    shown = [*families.values(), *_engine_families(replicas), *_node_families(replicas), *_cost_families(costs)]
    return generate_latest(_Ready(shown))


class _Ready(CollectorRegistry):
    """Families that are there already."""

    def __init__(self, families: list[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """What it was given."""
        return self._families


def _engine_families(replicas: Sequence[Mapping[str, Any]]) -> list[Metric]:
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for stats in replicas:
        where = [str(stats["replica_id"]), str(stats["node_id"]), str(stats.get("market", ""))]
        for name, value in _figures(stats).items():
            if name not in families:
                kind = GaugeMetricFamily if name in LEVELS else CounterMetricFamily
                families[name] = kind(f"sterna_engine_{name}", LEVELS.get(name, "since the engine was loaded"), labels=LABELS)
            families[name].add_metric(where, value)
    return list(families.values())


def _node_families(replicas: Sequence[Mapping[str, Any]]) -> list[Metric]:
    family = GaugeMetricFamily("sterna_node_info", "a node with replicas, and whether it drains", labels=["node", "market", "draining"])
    nodes = {str(stats["node_id"]): stats for stats in replicas}
    for node, stats in nodes.items():
        family.add_metric([node, str(stats.get("market", "")), str(bool(stats.get("draining"))).lower()], 1.0)
    return [family]


def _cost_families(costs: Mapping[str, Any] | None) -> list[Metric]:
    """What the machines with a known price cost, and would have cost on demand (cluster.ledger.Bill.summary)."""
    paid = CounterMetricFamily("sterna_cost_dollars", "what machines cost, since the ledger began", labels=["market"])
    fixed = CounterMetricFamily("sterna_on_demand_cost_dollars", "what they would have cost on demand", labels=["market"])
    sums: dict[str, list[float]] = {}
    for part in costs["by"] if costs else ():
        if part["dollars"] is not None:
            paid_s, fixed_s = sums.setdefault(part["market"], [0.0, 0.0])
            sums[part["market"]] = [paid_s + part["dollars"], fixed_s + part["on_demand_dollars"]]
    for market, (dollars, on_demand) in sums.items():
        paid.add_metric([market], dollars)
        fixed.add_metric([market], on_demand)
    return [paid, fixed]


def _figures(stats: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in stats.items() if isinstance(value, int | float) and not isinstance(value, bool)}


class ReplicaMetrics:
    """A replica's engine at the exporter that Ray runs on every node."""

    def __init__(self) -> None:
        self._gauges: dict[str, ray.util.metrics.Gauge] = {}

    def report(self, stats: Mapping[str, Any]) -> None:
        """Set every figure; what only grows is set too, for the engine does the counting."""
        where = {"replica": str(stats["replica_id"]), "node": str(stats["node_id"]), "market": str(stats.get("market", ""))}
        for name, value in _figures(stats).items():
            if name not in self._gauges:
                self._gauges[name] = ray.util.metrics.Gauge(f"sterna_engine_{name}", LEVELS.get(name, "counted"), tag_keys=LABELS)
            self._gauges[name].set(value, tags=where)
