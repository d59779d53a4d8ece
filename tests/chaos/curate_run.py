"""Curation while its processes and a node are killed: run by test_curate.py in a process of its own; FOLDER/found.json tells.

Three nodes on this machine. The corpus is made once in calm, then under a storm, which draws when and where attempts die: as
one begins, with half of a file written, or with all of its work done and not yet said. It leaves an order there; the first
attempt that comes by takes the order and stands still until it is killed from outside, with SIGKILL: so each kill hits work
under way, whatever the speed of the machine. One order kills the node of the attempt that took it, and another node comes in its
place. Every attempt notes Ray's id of its task and its own process: a task with notes of two processes was really executed again.

python tests/chaos/curate_run.py INPUT FOLDER PARTITIONS KILLS [--seed N]
"""

import argparse
import dataclasses
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster

from cluster.storage import digest_of
from pipelines.curate import flow
from pipelines.curate.config import CurateConfig
from pipelines.curate.tasks import in_tasks

POINTS = ("begins", "writes", "ends")
UNCOUNTED = "stage"  # runs in the tasks of read_files
PROMPT = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200, "health_check_failure_threshold": 5}  # a node is missed in 1 s


def attempt_of(function, folder):
    """The function, leaving a note `function-task.process` each time that it is tried, and dying where it is told to."""

    def run(item, *rest, **settings):
        context = ray.get_runtime_context()
        Path(folder, "notes", f"{function.__name__}-{context.get_task_id()}.{os.getpid()}").touch()
        rename = Path.rename

        def named(scratch, target):
            die_if_told("writes", folder, scratch)
            return rename(scratch, target)

        die_if_told("begins", folder)
        with mock.patch.object(Path, "rename", named):
            result = function(item, *rest, **settings)
            if hasattr(result, "__next__"):
                result = iter(list(result))
        die_if_told("ends", folder)
        return result

    return run


def die_if_told(point, folder, scratch=None):
    """If there is an order for this point, take it and stand still; a file that is being written is left half written."""
    context = ray.get_runtime_context()
    try:
        Path(folder, "orders", point).replace(Path(folder, "orders", f"taken.{context.get_node_id()}.{os.getpid()}"))
    except FileNotFoundError:
        return
    if scratch is not None:
        os.truncate(scratch, scratch.stat().st_size // 2)
    threading.Event().wait(120)
    raise AssertionError(f"{point}: was told to die and nobody killed it")


def content(output):
    """Kept and dropped, whatever files they are in."""
    rows = {part: [r for f in Path(output, part).glob("*.parquet") for r in pq.read_table(f).to_pylist()] for part in ("kept", "dropped")}
    return {part: digest_of(sorted(found, key=lambda row: row["id"])) for part, found in rows.items()}, {p: len(r) for p, r in rows.items()}


class Storm:
    """Kills `kills` attempts, one after the other, and with the middle one its node, until the `work` is done."""

    def __init__(self, folder, cluster, kills, seed, work):
        self.work = work
        self.notes, self.orders = folder / "notes", folder / "orders"
        self.cluster, self.kills, self.pick = cluster, kills, random.Random(seed)
        self.killed, self.nodes_killed = Counter(), 0

    def run(self):
        begun = len(list(self.notes.iterdir()))  # of the calm run: so many begin again, and more where some are killed
        for number, most in enumerate(sorted(self.pick.sample(range(begun), self.kills))):
            self.once(lambda most=most: len(list(self.notes.iterdir())) >= begun + most)
            point = self.pick.choice(POINTS)
            (self.orders / point).touch()
            taken = self.once(lambda: next(self.orders.glob("taken.*"), None))
            if taken is None:
                return
            _, node, process = taken.name.split(".")
            if number == self.kills // 2:
                self.kill_node(node)
            else:
                os.kill(int(process), signal.SIGKILL)
            taken.unlink()
            self.killed[point] += 1

    def once(self, found):
        """What `found` finds, as soon as it does; None once the work is done."""
        while not wait([self.work], timeout=0.01).done:
            if result := found():
                return result
        return None

    def kill_node(self, node_id):
        self.cluster.add_node(num_cpus=2)
        self.cluster.remove_node(next(n for n in self.cluster.worker_nodes if n.node_id == node_id), allow_graceful=False)
        self.nodes_killed += 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("input", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("partitions", type=int)
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    clock = [time.monotonic()]
    for name in ("notes", "orders"):
        (given.folder / name).mkdir(parents=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": PROMPT})
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    config = CurateConfig(
        input=(str(given.input),), output=str(given.folder / "calm"), num_partitions=given.partitions,
        task_bytes=30_000, driver_bytes=1, paragraphs=True, select_share=0.9, order="rarity",
    )  # fmt: skip
    flow.read_files, flow.stage = (attempt_of(step, str(given.folder)) for step in (flow.read_files, flow.stage))
    for name, module in list(sys.modules.items()):
        if name.startswith("pipelines.curate.") and name != in_tasks.__module__ and hasattr(module, "in_tasks"):
            module.in_tasks = lambda function, items, *shared: in_tasks(attempt_of(function, str(given.folder)), items, *shared)
    clock.append(time.monotonic())
    flow.curate(config)
    clock.append(time.monotonic())
    with ThreadPoolExecutor() as pool:  # Ray adds nodes from the main thread only
        work = pool.submit(flow.curate, dataclasses.replace(config, output=str(given.folder / "storm")))
        storm = Storm(given.folder, cluster, given.kills, given.seed, work)
        storm.run()
        manifest = work.result().manifest
    clock.append(time.monotonic())
    attempts = Counter(note.stem for note in (given.folder / "notes").iterdir() if not note.name.startswith(UNCOUNTED))
    found = {
        "calm": content(given.folder / "calm"), "storm": content(given.folder / "storm"),
        "tasks": len(attempts), "executed_again": sum(count - 1 for count in attempts.values()),
        "kinds_again": sorted({task.split("-")[0] for task, count in attempts.items() if count > 1}),
        "killed": storm.killed, "nodes_killed": storm.nodes_killed, "rounds": manifest.metrics["rounds"],
        "files": sorted(manifest.files), "seconds": [round(b - a, 1) for a, b in pairwise(clock)],
    }  # fmt: skip
    (given.folder / "found.json").write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
