"""Ray's nodes as machines: what labels say, and the table of a real cluster."""

from __future__ import annotations

import time
from typing import Any

from cluster.market import ON_DEMAND, SPOT, Pool
from cluster.nodes import machine_of, node_rows, node_table


def node(name: str = "a", **more: Any) -> dict[str, Any]:
    plain = {"id": name, "address": "10.0.0.7", "labels": {}, "instance_type": "", "start_s": 0.0, "end_s": None, "head": False}
    return plain | more


SPOT_LABELS = {"ray.io/market-type": "spot", "ray.io/availability-zone": "us-west-2b", "sterna.io/instance-type": "m7i.4xlarge"}


def test_a_node_without_labels_is_one_that_stays_somewhere():
    machine = machine_of(node())
    assert (machine.market, machine.pool, machine.end_s) == (ON_DEMAND, Pool("any", "any"), None)


def test_labels_say_what_a_node_is():
    machine = machine_of(node(labels=SPOT_LABELS))
    assert (machine.market, machine.pool) == (SPOT, Pool("us-west-2b", "m7i.4xlarge"))
    assert machine_of(node(instance_type="c7i.large")).pool.instance_type == "c7i.large", "as Ray's autoscaler says"


def test_only_living_nodes_are_shown():
    rows = node_rows([node("a", labels=SPOT_LABELS), node("b", end_s=5.0)])
    assert [(row["id"], row["market"], row["type"]) for row in rows] == [("a", "spot", "m7i.4xlarge")]


def test_the_table_of_a_real_cluster(ray_session):
    (head,) = node_table()
    assert head["head"]
    assert head["end_s"] is None
    assert 0 < time.time() - head["start_s"] < 3600
    machine = machine_of(head)
    assert (machine.machine_id, machine.market) == (head["id"], ON_DEMAND)
