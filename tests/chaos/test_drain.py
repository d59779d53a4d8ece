"""A real drain under newcomers: half a second later nobody is let in on that machine, and no client notices that there was a drain."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import ray.serve
from ray.serve._private.constants import SERVE_NAMESPACE

from cluster.preemption import drain
from pipelines.drill import fleet_of, replicas_running
from serve.app import APP, free_port, gateways_of, running
from serve.config import ServeConfig
from serve.engine.config import EngineConfig

ROOT = Path(__file__).resolve().parents[2]
BOUND_S = 0.5
NUM_CLIENTS = 4
RUN = "import sys; from tests.chaos.test_drain import main; main(*sys.argv[1:])"


@pytest.mark.slow  # a cluster of its own; that a place on a draining node is never chosen, and a newcomer bounced, is tested beside them
def test_from_half_a_second_after_a_drain_no_request_is_admitted_there(tiny_model_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(tiny_model_dir), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["texts"] == 1, "an answer is not what it was before"
    admitted = {file.name: [float(line) for line in file.read_text().splitlines()] for file in tmp_path.iterdir()}
    there, drained_s = admitted.pop(found["victim"]), found["drained_s"]
    assert len([at_s for at_s in there if at_s < drained_s]) > 3, "nobody came before the drain"
    assert max(there) < drained_s + BOUND_S
    assert len([at_s for times in admitted.values() for at_s in times if at_s > drained_s + BOUND_S]) > 10, "nobody came after it"
    late = [row for row in found["rows"] if row["start_s"] > drained_s + BOUND_S]
    assert len(late) > 10
    assert all(row["replica_id"] != found["victim"] for row in late), "the router chose a place on a machine that drains"
    bounced = {row["stream"] for row in found["rows"] if row["replica_id"] == found["victim"] and row["end"] == "moved"}
    assert bounced <= {row["stream"] for row in found["rows"] if row["end"] == "done"}


def main(model: str, folder: str) -> None:
    """In a process of its own, on a cluster of its own: one on-demand node, two spot nodes with a replica each; prints what it saw, and
    leaves a file for each replica with the times at which it admitted requests."""
    with fleet_of(2):
        engine = EngineConfig(dtype="float64", num_threads=1)
        config = ServeConfig(model=model, name="tern", port=free_port(), spot_replicas=2, on_demand_replicas=0, engine=engine, frame_s=0.01)
        with running(config) as url:
            while replicas_running(APP, "spot") < 2:
                time.sleep(0.05)  # Serve has no event for it
            nodes = dict(within(name, partial(record, Path(folder))) for name in engines())
            victim, node_id = next(iter(nodes.items()))
            texts, drained_s = asyncio.run(newcomers(url, lambda: drain(node_id, "test", 60.0)))
            rows = gateways_of(APP).journal.remote().result()
    print(json.dumps({"victim": victim, "drained_s": drained_s, "texts": len(set(texts)), "rows": rows}))


async def newcomers(url: str, strike: Callable[[], Any]) -> tuple[list[str], float]:
    """Short requests, one after the other, from several clients, before and after the drain; what they were told, and when it was."""
    body, texts, over = {"model": "tern", "prompt": "def add(", "max_tokens": 4, "temperature": 0.0}, [], asyncio.Event()

    async def client() -> None:
        async with httpx.AsyncClient(timeout=30.0) as http:
            while not over.is_set():
                answer = await http.post(f"{url}/completions", json=body)
                texts.append(answer.raise_for_status().json()["choices"][0]["text"])

    clients = [asyncio.create_task(client()) for _ in range(NUM_CLIENTS)]
    await asyncio.sleep(1.0)
    drained_s = time.time()
    await asyncio.to_thread(strike)
    await asyncio.sleep(2.0)
    over.set()
    await asyncio.gather(*clients)
    return texts, drained_s


def engines() -> list[str]:
    """Names of the actors that run engines."""
    return [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if "#spot#" in actor["name"]]


def within(name: str, what: Callable[[Any], Any]) -> Any:
    """Run something in a replica's process; it is given the deployment's object."""
    return ray.get(ray.get_actor(name, namespace=SERVE_NAMESPACE).__ray_call__.remote(_within, what), timeout=30)


def _within(_: Any, what: Callable[[Any], Any]) -> Any:
    return what(ray.serve.get_replica_context().servable_object)


def record(folder: Path, replica: Any) -> tuple[str, str]:
    """From now on it notes in a file when its engine admits a request (a replica on a machine that drains may go any time); its name and
    its node."""
    engine, add = replica._engine, replica._engine.add

    def noted(request: Any) -> None:
        with (folder / replica._replica_id).open("a") as file:
            file.write(f"{time.time()}\n")
        add(request)

    engine.add = noted
    return replica._replica_id, replica._node_id
