"""Ray's table of nodes as plain data: who is there, who was, since when and as what.

Promise: every node of the cluster that Ray still knows, the dead ones with the time of their end; what its labels say of its market, its
zone and its type. Price: one call to the GCS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled, without stubs

from cluster.ledger import Life
from cluster.market import ON_DEMAND, SPOT, Pool
from cluster.price_book import ANY

__all__ = ["machine_of", "node_rows", "node_table"]

MARKET, ZONE, REGION, TYPE = "ray.io/market-type", "ray.io/availability-zone", "ray.io/availability-region", "sterna.io/instance-type"

_ALIVE = 0
_RPC_TIMEOUT_S = 5.0


def node_table(gcs_address: str | None = None) -> list[dict[str, Any]]:
    """For each node: id (hex), address, labels, instance_type (empty if Ray's autoscaler did not say), start_s and end_s (unix seconds;
    None while it lives), and whether it is the head.
    """
    client = GcsClient(address=gcs_address or ray.get_runtime_context().gcs_address)
    nodes = client.get_all_node_info(timeout=_RPC_TIMEOUT_S)
    return [
        {
            "id": node_id.hex(),
            "address": node.node_manager_address,
            "labels": dict(node.labels),
            "instance_type": node.instance_type_name,
            "start_s": node.start_time_ms / 1000,
            "end_s": None if node.state == _ALIVE else node.end_time_ms / 1000 or None,
            "head": node.is_head_node,
        }
        for node_id, node in nodes.items()
        if node.state == _ALIVE or node.end_time_ms
    ]


def node_rows(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The living nodes, with their market, type and zone as labels say them."""
    rows = []
    for node in table:
        if node["end_s"] is None:
            machine = machine_of(node)
            place = {"market": machine.market, "type": machine.pool.instance_type, "zone": machine.pool.zone}
            rows.append({"id": node["id"], "address": node["address"], "head": node["head"], "since_s": node["start_s"], **place})
    return rows


def machine_of(node: Mapping[str, Any]) -> Life:
    """A node as the ledger sees it. A node without a market label is one that stays."""
    labels = node["labels"]
    zone = labels.get(ZONE) or labels.get(REGION) or ANY
    kind = labels.get(TYPE) or node.get("instance_type") or ANY
    market = SPOT if labels.get(MARKET) == SPOT else ON_DEMAND
    return Life(node["id"], Pool(zone, kind), market, node["start_s"], node["end_s"])
