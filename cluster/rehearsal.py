"""A cloud on this machine: Ray's real autoscaler, our own node types, machines that are processes, and a market that can run dry.

Promise: `rehearsal(document)` starts a head with autoscaler v2 over the node types of a cluster file (cluster.yaml itself), each machine
cut down to a CPU or so; the autoscaler launches and retires real raylets, with their labels. Node types named in the dry list have no
capacity, as a spot market at times has none; a machine whose raylet is killed is gone, as when the cloud takes it. All of it ends
with the block. Price: about 3 s and 0.3 GB for the head, the same again for each machine.
Source: the fake multi-node provider of Ray's own tests (its `AutoscalingCluster` runs `ray stop --force`, so it is not used).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled, without stubs
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE, FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

__all__ = ["Rehearsal", "RehearsalProvider", "rehearsal", "rehearsal_document"]

LOOPBACK = "127.0.0.1"
_STORE_BYTES = 80 << 20
_START_S = 60.0
_DRY = "dry.json"
_EMPTY = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands",
    "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
)  # fmt: skip
"""What machines that are processes do not need, and the file format wants named."""


class RehearsalProvider(FakeMultiNodeProvider):  # type: ignore[misc]  # Ray's class is untyped
    """Ray's fake provider on the loopback, which refuses dry node types and sees machines that were taken."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._dry = Path(provider_config["dry_list"])

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: dict[str, float], labels: dict[str, str]
    ) -> None:
        """Start `count` machines, or raise what a cloud without capacity says."""
        kind = tags[TAG_RAY_USER_NODE_TYPE]
        if kind in json.loads(self._dry.read_text()):
            raise NodeLaunchException("InsufficientInstanceCapacity", f"no capacity for {kind}", None)
        super().create_node_with_resources_and_labels(node_config, tags, count, {**resources, "object_store_memory": _STORE_BYTES}, labels)

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """The machines that live; one whose raylet has ended is forgotten, with what is left of it."""
        with self.lock:
            gone = [name for name, entry in self._nodes.items() if "node" in entry and not _lives(entry["node"])]
            for name in gone:
                self._terminate_node(self._nodes.pop(name))
        found: list[str] = super().non_terminated_nodes(tag_filters)
        return found


def _lives(node: Any) -> bool:
    return all(raylet.process.poll() is None for raylet in node.all_processes.get(PROCESS_TYPE_RAYLET, ()))


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A running rehearsal."""

    address: str
    """Of its GCS, for `ray.init`."""
    folder: Path

    def run_dry(self, *node_types: str) -> None:
        """From now on exactly these node types have no capacity."""
        fresh = self.folder / f"{_DRY}.new"
        fresh.write_text(json.dumps(node_types))
        fresh.rename(self.folder / _DRY)

    def take(self, node_id: str) -> None:
        """Take a machine away without a word: kill its raylet and all that runs below it."""
        for process in psutil.process_iter(["name", "environ"]):
            if process.info["name"] == "raylet" and (process.info["environ"] or {}).get("RAY_CLOUD_INSTANCE_ID") == node_id:
                _kill_all(process)


def rehearsal_document(document: Mapping[str, Any], *, cpus: float = 1, idle_s: float = 5.0) -> dict[str, Any]:
    """A cluster file's node types, labels and limits with machines of `cpus` CPUs on this machine; its head is the one started here."""
    kinds = document["available_node_types"]
    head = {**_small(kinds[document["head_node_type"]], 0), "max_workers": 0}
    small = {name: _small(kind, cpus) for name, kind in kinds.items() if name != document["head_node_type"]}
    module = f"{__name__}.{RehearsalProvider.__name__}"
    return {
        "cluster_name": "rehearsal",
        "max_workers": document.get("max_workers", 8),
        "idle_timeout_minutes": idle_s / 60,
        "upscaling_speed": 100.0,
        "provider": {"type": "external", "module": module, "launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID},
        "auth": {},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {**small, FAKE_HEAD_NODE_TYPE: head},
        "file_mounts": {},
        **{key: [] for key in _EMPTY},
    }


def _small(kind: Mapping[str, Any], cpus: float) -> dict[str, Any]:
    """A node type with its labels and limits; a machine that has CPUs has `cpus` of them."""
    resources = kind.get("resources", {})
    kept = {name: kind[name] for name in ("labels", "min_workers", "max_workers") if name in kind}
    return {**kept, "resources": {**resources, "CPU": min(cpus, resources.get("CPU", 0))}, "node_config": {}}


@contextmanager
def rehearsal(document: Mapping[str, Any], *, cpus: float = 1, idle_s: float = 5.0, update_s: int = 1) -> Iterator[Rehearsal]:
    """The cluster of `document` on this machine, with nobody in it yet but the head. TimeoutError if the head does not start."""
    folder = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))  # short: Unix sockets lie in it
    (folder / _DRY).write_text("[]")
    made = rehearsal_document(document, cpus=cpus, idle_s=idle_s)
    port = _free_port()
    made["provider"] |= {"gcs_address": f"{LOOPBACK}:{port}", "dry_list": str(folder / _DRY)}
    (folder / "cluster.json").write_text(json.dumps(made))
    process = _start_head(folder, port, made["available_node_types"][FAKE_HEAD_NODE_TYPE]["labels"], update_s)
    try:
        _await_head(process, f"{LOOPBACK}:{port}", folder)
        yield Rehearsal(f"{LOOPBACK}:{port}", folder)
        if process.poll() is not None:
            raise RuntimeError(f"the head ended meanwhile: {_last_words(folder)}")
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _last_words(folder: Path) -> str:
    return (folder / "head.log").read_text()[-2000:]


def _start_head(folder: Path, port: int, labels: Mapping[str, str], update_s: int) -> subprocess.Popen[bytes]:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": str(update_s),
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--node-ip-address={LOOPBACK}", f"--port={port}",
        "--num-cpus=0", f"--object-store-memory={_STORE_BYTES}", f"--autoscaling-config={folder / 'cluster.json'}",
        f"--labels={','.join(f'{key}={value}' for key, value in labels.items())}",
        "--include-dashboard=false", "--disable-usage-stats", "--dashboard-agent-listen-port=0",
    ]  # fmt: skip
    with (folder / "head.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _await_head(process: subprocess.Popen[bytes], address: str, folder: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        if _listens(address) and GcsClient(address=address).get_all_node_info(timeout=5.0):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError(f"the head did not start: {_last_words(folder)}")
        time.sleep(0.1)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """The head and everything below it, machines included: they are children of its autoscaler."""
    with suppress(psutil.NoSuchProcess):
        _kill_all(psutil.Process(process.pid))
    process.wait()


def _kill_all(parent: psutil.Process) -> None:
    """A process and all below it; the others first, for they may end with it."""
    for process in [*parent.children(recursive=True), parent]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
