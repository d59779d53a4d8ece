"""One is a driver for the length of a block: of what runs already, or of a cluster of one's own that ends with the block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, **environment: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | environment
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_inside_a_session_nothing_is_started_or_stopped(ray_session):
    import ray

    from cluster.runtime import attached, num_cpus_available

    before = ray.get_runtime_context().gcs_address
    with attached(num_cpus=99):
        assert ray.get_runtime_context().gcs_address == before
        assert num_cpus_available() == 4
    assert ray.is_initialized()


def test_a_cluster_of_ones_own_ends_with_the_block():
    script = """
import ray
from cluster.runtime import attached, num_cpus_available
with attached(num_cpus=3):
    assert num_cpus_available() == 3
assert not ray.is_initialized()
print("passed")
"""
    assert "passed" in run(script, RAY_ADDRESS="local")


def test_sigterm_leaves_the_block_as_ctrl_c_does():
    script = """
import ray
from cluster.runtime import attached
@ray.remote
def never():
    import threading
    threading.Event().wait()
try:
    with attached(num_cpus=1):
        reference = never.remote()
        print("waiting", flush=True)
        ray.get(reference)
except KeyboardInterrupt:
    print("left", ray.is_initialized())
"""
    environment = os.environ | {"RAY_ADDRESS": "local"}
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "waiting\n"
        driver.send_signal(signal.SIGTERM)
        assert driver.stdout.read() == "left False\n"
    assert driver.returncode == 0


def test_a_cluster_that_is_attached_to_goes_on_afterwards():
    script = """
import os
os.environ["RAY_ADDRESS"] = "local"
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
os.environ["RAY_ADDRESS"] = cluster.address
import ray
from cluster.runtime import attached, num_cpus_available
for _ in range(2):
    with attached(num_cpus=7):
        assert ray.get_runtime_context().gcs_address == cluster.address
        assert num_cpus_available() == 2, "the cluster's own, not what was asked for"
    assert not ray.is_initialized()
cluster.shutdown()
print("passed")
"""
    assert "passed" in run(script)


def test_an_address_where_nobody_answers_starts_nothing_here():
    script = """
import ray
from cluster.runtime import attached
try:
    with attached():
        print("attached to something")
except ValueError as error:
    assert "RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there" in str(error), error
    assert not ray.is_initialized()
    print("passed")
"""
    assert "passed" in run(script, RAY_ADDRESS="127.0.0.1:1")
