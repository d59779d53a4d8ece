"""Who is there: the cluster's machines as Ray and its autoscaler know them, in plain values.

Promise: `census` asks the GCS and returns living nodes with their labels, resources, drains and notices, the machines that the
autoscaler is starting, and the launches that the cloud refused; a cluster without an autoscaler has none of the latter two.
Price: three GCS calls of some milliseconds. Source: Ray's autoscaler v2 (`ray.autoscaler.v2.sdk.get_cluster_status`).
"""

from __future__ import annotations

import math
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
    gone_s: float | None = None
    """When it will be gone (unix seconds; infinity: at some time), if it drains or has been given notice (cluster/announcement.py)."""

    @property
    def leaving(self) -> bool:
        """Whether it has been given notice and does not drain yet."""
        return self.gone_s is not None and not self.draining


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

    from cluster.announcement import announced
    from cluster.bulletin import Bulletin
    from cluster.preemption import draining_nodes

    status, drains, leaving = get_cluster_status(gcs_address), draining_nodes(gcs_address), announced(Bulletin(gcs_address))
    nodes = [_node(info, drains, leaving) for info in (*status.active_nodes, *status.idle_nodes)]
    launching: Counter[str] = Counter()
    for launch in status.pending_launches:
        launching[launch.ray_node_type_name] += launch.count
    for pending in status.pending_nodes:
        launching[pending.ray_node_type_name] += 1
    refusals = tuple(Refusal(failed.ray_node_type_name, failed.count, float(failed.failed_ts_s or 0)) for failed in status.failed_launches)
    return Census(tuple(nodes), dict(launching), refusals)


def _node(info, drains: Mapping[str, int | None], announced: Mapping[str, float]) -> Node:  # type: ignore[no-untyped-def]  # noqa: ANN001  # Ray's NodeInfo
    assert info.node_id is not None
    named = "" if info.ray_node_type_name == f"node_{info.node_id}" else info.ray_node_type_name
    draining = info.node_id in drains
    deadline_ms = drains.get(info.node_id)
    gone_s = announced.get(info.node_id, math.inf if draining else None) if deadline_ms is None else deadline_ms / 1000
    return Node(info.node_id, named, info.labels or {}, info.total_resources(), info.available_resources(), draining, gone_s)
