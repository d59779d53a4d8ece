"""A drain is seen where it matters: by the doomed node's own workers, soon, with its deadline, and by whoever asks."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster import preemption

ROOT = Path(__file__).resolve().parents[2]

TWO_NODES = """
import os, time
os.environ["RAY_ADDRESS"] = "local"
import ray
from ray.cluster_utils import Cluster
from cluster.announcement import announce
from cluster.bulletin import Bulletin
from cluster.preemption import DrainWatch, drain, draining_nodes, my_deadline, node_addresses

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
spot = cluster.add_node(num_cpus=1, resources={"spot": 1})
ray.init(address=cluster.address, log_to_driver=False)

@ray.remote(resources={"spot": 1})
def doomed():
    with DrainWatch() as watch:
        before = watch.deadline, my_deadline()
        print("up", flush=True)
        deadline = watch.wait(30)
        return before, deadline, my_deadline(), time.time()

assert draining_nodes() == {} and my_deadline() is None
assert set(node_addresses()) == {spot.node_id, cluster.head_node.node_id}
task = doomed.remote()
with DrainWatch(node_id=spot.node_id, gcs_address=cluster.address) as outside:
    time.sleep(1.5)  # let the task begin to wait
    sent = time.time()
    drain(spot.node_id, "test", 20)
    before, deadline, asked, seen = ray.get(task)
    assert before == (None, None), before
    assert deadline == asked and abs(deadline - (sent + 20)) < 1, (deadline, asked, sent)
    assert seen - sent < 2, seen - sent
    assert outside.wait(5) == deadline and outside.nodes == {spot.node_id: deadline}
gone_s = time.time() + 60
announce(Bulletin(), cluster.head_node.node_id, gone_s, "test")
with DrainWatch(announcements=True) as watch:
    assert watch.announced == {cluster.head_node.node_id: gone_s} and watch.deadline is None
assert my_deadline() is None
try:
    drain("ab" * 28, "nobody", 1)
except ValueError as error:
    assert "no living Ray node" in str(error)
else:
    raise AssertionError("an unknown node was drained")
ray.shutdown()
cluster.shutdown()
print("passed")
"""


def test_a_worker_learns_of_the_drain_of_its_node_on_a_real_cluster():
    done = subprocess.run([sys.executable, "-c", TWO_NODES], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "passed" in done.stdout


class FakeGcs:
    """What DrainWatch asks for, under the test's control."""

    def __init__(self) -> None:
        self.nodes: dict[str, int] = {}
        self.broken = False
        self.calls = 0

    def get_draining_nodes(self, timeout: float) -> dict[str, int]:
        self.calls += 1
        if self.broken:
            raise RuntimeError("GCS is away")
        return dict(self.nodes)


@pytest.fixture
def gcs(monkeypatch) -> FakeGcs:
    fake = FakeGcs()
    monkeypatch.setattr(preemption, "_client", lambda _: fake)
    return fake


def watch_of(**options) -> preemption.DrainWatch:
    return preemption.DrainWatch(node_id="me", gcs_address="nowhere:1", interval_s=0.01, **options)


def test_deadline_zero_means_none_given(gcs):
    gcs.nodes = {"me": 0, "other": 5_000}
    assert preemption.draining_nodes("nowhere:1") == {"me": None, "other": 5_000}
    with watch_of() as watch:
        assert watch.deadline == math.inf
        assert watch.nodes == {"me": math.inf, "other": 5.0}


def test_another_nodes_drain_is_listed_but_is_not_mine(gcs):
    gcs.nodes = {"other": 5_000}
    with watch_of() as watch:
        assert watch.wait(0.05) is None
        assert watch.deadline is None
        assert watch.nodes == {"other": 5.0}


def until(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 5 s"
        threading.Event().wait(0.01)


def test_callbacks_hear_of_the_drain_and_of_each_nearer_deadline(gcs):
    seen: list[tuple[str, float]] = []
    with watch_of() as watch:
        watch.add_callback(lambda deadline: seen.append(("early", deadline)))
        watch.add_callback(lambda deadline: 1 / 0)  # must not take the others down
        watch.add_callback(lambda deadline: seen.append(("second", deadline)))
        gcs.nodes = {"me": 0}  # a drain without a deadline
        until(lambda: len(seen) == 2)
        gcs.nodes = {"me": 7_000}  # that it has one is news
        assert watch.wait(5) is not None
        until(lambda: len(seen) == 4)
        watch.add_callback(lambda deadline: seen.append(("late", deadline)))
        gcs.nodes = {"me": 9_000}  # a later one is none
        until(lambda: watch.deadline == 9.0)
        gcs.nodes = {"me": 3_000}
        until(lambda: len(seen) == 8)
    assert seen == [
        *(("early", math.inf), ("second", math.inf)),
        *(("early", 7.0), ("second", 7.0), ("late", 7.0)),
        *(("early", 3.0), ("second", 3.0), ("late", 3.0)),
    ]


def test_a_node_that_drains_is_announced_no_more(gcs, monkeypatch):
    monkeypatch.setattr(preemption, "Bulletin", lambda _: object())
    monkeypatch.setattr(preemption, "announced", lambda _: {"me": 9.0, "other": 5.0})
    with watch_of(announcements=True) as watch:
        assert watch.announced == {"me": 9.0, "other": 5.0}
        gcs.nodes = {"other": 5_000}
        until(lambda: watch.announced == {"me": 9.0})
        assert watch.deadline is None, "it has been given notice, and does not drain yet"
    with watch_of() as watch:
        assert watch.announced == {}, "nobody asked"


def test_a_gcs_that_does_not_answer_leaves_the_last_answer_and_is_asked_again(gcs):
    gcs.broken = True
    with watch_of() as watch:
        assert watch.deadline is None
        gcs.broken, gcs.nodes = False, {"me": 9_000}
        assert watch.wait(5) == 9.0
        gcs.broken = True
        calls, until = gcs.calls, time.monotonic() + 5
        while gcs.calls < calls + 3 and time.monotonic() < until:
            threading.Event().wait(0.01)
        assert watch.deadline == 9.0


def test_drained_can_be_awaited(gcs):
    async def main() -> float:
        with watch_of() as watch:
            waiting = asyncio.create_task(watch.drained())
            await asyncio.sleep(0.03)
            assert not waiting.done()
            gcs.nodes = {"me": 4_000}
            deadline = await asyncio.wait_for(waiting, 5)
            assert not watch._callbacks, "nobody waits any more"
            return deadline

    assert asyncio.run(main()) == 4.0


def test_closing_wakes_those_who_wait(gcs):
    watch = watch_of()
    waiter = threading.Thread(target=watch.wait)
    waiter.start()
    watch.close()
    waiter.join(5)
    assert not waiter.is_alive()
    assert watch.deadline is None
