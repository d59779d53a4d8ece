"""What an operator does to a service that is in use: fewer replicas, another setting, a Serve config file, Ctrl-C; no client notices."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray.serve
import yaml
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from serve.app import APP, free_port, running
from serve.config import ServeConfig
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Sampling

ROOT = Path(__file__).resolve().parents[2]
NUM_CLIENTS, NUM_TOKENS, PATIENCE_S = 6, 300, 60.0
FAST = EngineConfig(dtype="float64", num_threads=1)


def prompt(index: int) -> str:
    return f"def f{index}("


@pytest.fixture(scope="module")
def undisturbed(tiny_model_dir: Path) -> list[str]:
    engine = Engine.load(tiny_model_dir, FAST)
    wants = [Sampling(max_tokens=NUM_TOKENS, temperature=1.0, seed=index, ignore_eos=True) for index in range(NUM_CLIENTS)]
    return [engine.generate([prompt(index)], want)[0].text for index, want in enumerate(wants)]


@pytest.fixture(scope="module")
def config(tiny_model_dir: Path) -> ServeConfig:
    return ServeConfig(
        model=str(tiny_model_dir), name="tern", port=free_port(), on_demand_replicas=2, cpus_per_replica=0.5, engine=FAST, frame_s=0.01
    )


@pytest.fixture(scope="module")
def url(ray_session: None, config: ServeConfig) -> Iterator[str]:
    with running(config) as base:
        yield base


def ask(url: str, index: int) -> str:
    """The whole text of one stream; what ended early says so."""
    body = {"model": "tern", "prompt": prompt(index), "max_tokens": NUM_TOKENS, "seed": index, "stream": True, "ignore_eos": True}
    text, done = "", False
    with httpx.stream("POST", f"{url}/completions", json=body, timeout=PATIENCE_S) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]  # an error has no choices, and fails the test
            done = done or line == "data: [DONE]"
    assert done, "the stream ended early"
    return text


@dataclass
class Clients:
    """Clients who ask without a pause, and what they were told."""

    url: str
    heard: list[tuple[int, str]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def loop(self, index: int) -> None:
        try:
            self.heard.append((index, ask(self.url, index)))
            while not self.stop.is_set():
                self.heard.append((index, ask(self.url, index)))
        except Exception as error:
            self.failures.append(error)


@contextmanager
def busy(url: str, undisturbed: list[str]) -> Iterator[Clients]:
    """Streams all the while the block runs; at its end every one must be complete and what it is undisturbed."""
    clients = Clients(url)
    threads = [threading.Thread(target=clients.loop, args=(index,)) for index in range(NUM_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(clients.heard) >= NUM_CLIENTS or bool(clients.failures))
        yield clients
    finally:
        clients.stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not clients.failures
    assert all(text == undisturbed[index] for index, text in clients.heard)


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)  # Serve has no event for it


def replicas(deployment: str) -> set[str]:
    """Ids of those that run or are on their way out."""
    details = ray.serve.context._get_global_client().get_serve_details()["applications"][APP]["deployments"][deployment]["replicas"]
    return {replica["replica_id"] for replica in details}


def settled() -> bool:
    return ray.serve.status().applications[APP].status == ApplicationStatus.RUNNING


@pytest.fixture
def document(config: ServeConfig) -> dict[str, Any]:
    """deploy/serve.yaml with the tiny model, and machines that are here."""
    made: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text())
    args = made["applications"][0]["args"]
    del args["cluster"]
    args["autoscale"]["replica_tokens_per_s"] = 1e6  # the load is not what this is about
    args |= {"model": config.model, "name": "tern", "cpus_per_replica": 0.5, "engine": {"dtype": "float64", "num_threads": 1}}
    return made


def deploy(document: dict[str, Any], *, replaced: tuple[str, ...]) -> None:
    """As `serve deploy` does, until nothing of these deployments is what it was."""
    before = {name: replicas(name) for name in replaced}
    ray.serve.context._get_global_client().deploy_apps(ServeDeploySchema.model_validate(document))
    until(lambda: settled() and all(replicas(name) and not replicas(name) & old for name, old in before.items()))


def test_a_rolling_update_by_config_file_drops_no_stream(url: str, document: dict[str, Any], undisturbed: list[str]) -> None:
    with busy(url, undisturbed):
        for frame_s in (0.01, 0.03):  # from the application of before to the file's, and then the file with another setting
            document["applications"][0]["args"]["frame_s"] = frame_s
            deploy(document, replaced=("gateway", "on_demand"))
    assert {"gateway", "spot", "on_demand"} <= set(ray.serve.status().applications[APP].deployments)


@pytest.mark.slow
def test_a_replica_that_is_scaled_down_hands_its_streams_over(url: str, document: dict[str, Any], undisturbed: list[str]) -> None:
    app = document["applications"][0]
    app["args"] |= {"autoscaling": False, "spot_replicas": 0, "on_demand_replicas": 2}
    deploy(document, replaced=("gateway", "on_demand"))
    before, gateways = replicas("on_demand"), replicas("gateway")
    with busy(url, undisturbed):
        app["deployments"] = [{"name": "on_demand", "num_replicas": 1}]
        deploy(document, replaced=())
        until(lambda: len(replicas("on_demand")) == 1)
    assert replicas("gateway") == gateways, "a count alone restarts nothing"
    (gone,) = before - replicas("on_demand")
    ends = [stay["end"] for stay in ray.serve.get_app_handle(APP).journal.remote().result() if stay["replica_id"] == gone]
    assert "moved" in ends, "it had streams"
    assert set(ends) <= {"moved", "done"}, "and none was cut"


def test_an_interrupt_lets_running_streams_end(tiny_model_dir: Path, undisturbed: list[str]) -> None:
    port = free_port()
    command = [sys.executable, "-m", "sterna", "serve", str(tiny_model_dir), "--name", "tern", "--port", str(port)]
    for setting in ("dtype=float64", "num_threads=1", "max_sequences=1", "draft=off"):  # they queue, so that it takes some seconds
        command += ["--set", f"engine.{setting}"]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stderr is not None
        lines: list[str] = []
        while "is served at" not in (lines or [""])[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], "".join(lines)
        url = f"http://127.0.0.1:{port}/v1"
        clients, num_asked = Clients(url), 4 * NUM_CLIENTS
        clients.stop.set()  # each asks once
        streams = [threading.Thread(target=clients.loop, args=(index % NUM_CLIENTS,)) for index in range(num_asked)]
        for stream in streams:
            stream.start()
        until(lambda: num_streams(url) + len(clients.heard) >= num_asked)  # each has been let in
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        refused = closing(url)
        for stream in streams:
            stream.join(PATIENCE_S)
        rest = process.stderr.read()
        assert process.wait(PATIENCE_S) == 0, rest
    finally:
        process.kill()
    assert not clients.failures
    assert len(clients.heard) == num_asked
    assert all(text == undisturbed[index] for index, text in clients.heard)
    assert refused["error"]["code"] == "closing"
    assert "streams go on to their end" in rest
    assert rest.rstrip().endswith("stopped")


def num_streams(url: str) -> float:
    page = httpx.get(f"{url.removesuffix('/v1')}/metrics", timeout=PATIENCE_S).text
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("sterna_streams{"))


def closing(url: str) -> Any:
    """The error body with which newcomers are turned away, once they are."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        response = httpx.post(f"{url}/completions", json={"model": "tern", "prompt": "x", "max_tokens": 1}, timeout=PATIENCE_S)
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) > 0
            return response.json()
    raise AssertionError("newcomers are still let in")
