"""The cluster at hand, counted."""

import ray

from cluster.census import census


def test_the_census_knows_this_machine(ray_session: None) -> None:
    seen = census(ray.get_runtime_context().gcs_address)
    (node,) = seen.nodes
    assert node.node_id == ray.get_runtime_context().get_node_id()
    assert (node.node_type, node.draining, node.resources["CPU"], seen.launching, seen.refusals) == ("", False, 4, {}, ())
