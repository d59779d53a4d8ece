from __future__ import annotations

import socket

import pytest
import ray

from cluster.preemption import DrainWatch
from train.elastic.machines import machines, silent


@pytest.mark.usefixtures("ray_session")
def test_the_machines_of_this_cluster_are_seen_and_answer():
    node = ray.get_runtime_context().get_node_id()
    with DrainWatch() as watch:
        assert [(m.node_id, m.cpus, m.leaving) for m in machines(watch)] == [(node, 4.0, False)]
        assert [m.leaving for m in machines(watch, gone=[node])] == [True]
    assert silent([node]) == frozenset()
    assert silent(["0" * 56]) == frozenset()


def test_a_machine_that_does_not_answer_is_gone_before_ray_says_so(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as open_port, socket.socket() as closed:
        open_port.bind(("127.0.0.1", 0))
        open_port.listen()
        closed.bind(("127.0.0.1", 0))
        ports = {"a": open_port.getsockname()[1], "b": closed.getsockname()[1]}
        nodes = [{"NodeID": n, "Alive": True, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port} for n, port in ports.items()]
        dead = {"NodeID": "c", "Alive": False, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": ports["a"]}
        monkeypatch.setattr(ray, "nodes", lambda: [*nodes, dead])
        assert silent(["a", "b", "c"]) == {"b", "c"}
