"""Who is there: the cluster's machines as Ray and its autoscaler know them, in plain values.

Promise: `census` asks the GCS once and returns living nodes with their labels, resources and drains, the machines that the
autoscaler is starting, and the launches that the cloud refused; a cluster without an autoscaler has none of the latter two.
Price: one GCS call of some milliseconds. Source: Ray's autoscaler v2 (`ray.autoscaler.v2.sdk.get_cluster_status`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Census", "Node", "Refusal", "census"]


@dataclass(frozen=True, slots=True)
class Node:
    """A living Ray node."""

    node_id: str
    node_type: str
    """Its name in the cluster file; empty for a node that no autoscaler started."""
    labels: Mapping[str, str]
    resources: Mapping[str, float]
    """All of them."""
    free: Mapping[str, float] = field(default_factory=dict)
    """Those that nobody uses."""
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A launch that failed."""

    node_type: str
    count: int
    time_s: float
    """When, in unix seconds."""


@dataclass(frozen=True, slots=True)
class Census:
    """The machines of a cluster at one moment."""

    nodes: tuple[Node, ...] = ()
    launching: Mapping[str, int] = field(default_factory=dict)
    """Machines that are being started, by node type."""
    refusals: tuple[Refusal, ...] = ()


def census(gcs_address: str) -> Census:
    """The cluster at `gcs_address` (host:port), now."""
    from ray.autoscaler.v2.sdk import get_cluster_status  # here: whoever only wants the records loads no Ray

    from cluster.preemption import draining_nodes

    status, drains = get_cluster_status(gcs_address), draining_nodes(gcs_address)
    nodes = [_node(info, drains) for info in (*status.active_nodes, *status.idle_nodes)]
    launching: Counter[str] = Counter()
    for launch in status.pending_launches:
        launching[launch.ray_node_type_name] += launch.count
    for pending in status.pending_nodes:
        launching[pending.ray_node_type_name] += 1
    refusals = tuple(Refusal(failed.ray_node_type_name, failed.count, float(failed.failed_ts_s or 0)) for failed in status.failed_launches)
    return Census(tuple(nodes), dict(launching), refusals)


def _node(info, drains: Mapping[str, int | None]) -> Node:  # type: ignore[no-untyped-def]  # noqa: ANN001  # Ray's NodeInfo
    assert info.node_id is not None
    named = "" if info.ray_node_type_name == f"node_{info.node_id}" else info.ray_node_type_name
    return Node(info.node_id, named, info.labels or {}, info.total_resources(), info.available_resources(), info.node_id in drains)
