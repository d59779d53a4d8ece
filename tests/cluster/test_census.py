"""The cluster at hand, counted."""

import time

import ray

from cluster.announcement import announce, withdraw
from cluster.bulletin import Bulletin
from cluster.census import census


def test_the_census_knows_this_machine(ray_session: None) -> None:
    address, here = ray.get_runtime_context().gcs_address, ray.get_runtime_context().get_node_id()
    seen = census(address)
    (node,) = seen.nodes
    assert (node.node_id, node.node_type, node.draining, node.leaving, node.resources["CPU"]) == (here, "", False, False, 4)
    assert (seen.launching, seen.refusals) == ({}, ())
    gone_s = time.time() + 60
    announce(Bulletin(address), here, gone_s, "test")
    try:
        (node,) = census(address).nodes
        assert (node.leaving, node.gone_s) == (True, gone_s)
    finally:
        withdraw(Bulletin(address), here)
