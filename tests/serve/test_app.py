"""Binding the application: what is refused before anything starts, and how a start that fails is told."""

import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from serve import app
from serve.app import _refuse_elsewhere, _why, build, deployed, running
from serve.config import ServeConfig
from serve.engine.config import EngineConfig
from serve.limits.keys import digest

ROOT = Path(__file__).resolve().parents[2]


def test_a_busy_port_is_refused_before_anything_starts(tiny_model_dir: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(ValueError, match=rf"port {port} on 127.0.0.1: cannot listen"),
            running(ServeConfig(model=str(tiny_model_dir), port=port)),
        ):
            pass


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        build({"model": str(tmp_path / "nowhere")})
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        build({"model": str(tmp_path)})
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="safetensors is missing"):
        build({"model": str(tmp_path)})


def test_serve_run_takes_the_same_settings(tiny_model_dir: Path) -> None:
    assert build({"model": str(tiny_model_dir), "engine.dtype": "float64", "spot_replicas": "2"}) is not None
    with pytest.raises(ValueError, match=r"serve\.app:build: unknown key 'modle'"):
        build({"model": str(tiny_model_dir), "modle": "x"})
    with pytest.raises(ValueError, match="no replica at all"):
        build({"model": str(tiny_model_dir), "on_demand_replicas": 0})


def test_adapters_are_found_before_anything_starts(tiny_model_dir: Path, tiny_adapter_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_adapter_dir.parent)
    adapter = f"polite={tiny_adapter_dir.name}"
    assert build({"model": str(tiny_model_dir), "engine.adapters": [adapter]}) is not None
    with pytest.raises(ValueError, match="nowhere: no adapter"):
        build({"model": str(tiny_model_dir), "engine.adapters": ["polite=nowhere"]})
    with pytest.raises(ValueError, match="'polite' is the model's own name"):
        build({"model": str(tiny_model_dir), "name": "polite", "engine.adapters": [adapter]})


def test_workers_get_whole_paths_and_as_many_threads_as_cores(
    tiny_model_dir: Path, tiny_adapter_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_adapter_dir.parent)
    given = ServeConfig(model=str(tiny_model_dir), cpus_per_replica=2, engine=EngineConfig(adapters=(f"a={tiny_adapter_dir.name}",)))
    engine = deployed(given).engine
    assert (engine.adapters, engine.num_threads) == ((f"a={tiny_adapter_dir}",), 2)
    assert deployed(replace(given, engine=EngineConfig(num_threads=1))).engine.num_threads == 1
    assert deployed(replace(given, cpus_per_replica=0.5)).engine.num_threads == 1


WORKER = """
import sys, psutil, ray
from cluster.runtime import attached
from serve.app import application
from serve.config import ServeConfig

@ray.remote
def environments():
    me = psutil.Process()
    return [process.environ().get("TERN_KEYS") for process in (me, me.parent())]

application(ServeConfig(model=sys.argv[1], api_keys="env:TERN_KEYS"))
with attached(num_cpus=1):
    print(ray.get(environments.remote()))
"""


def test_a_key_from_the_environment_is_in_no_process_that_ray_starts(tiny_model_dir: Path) -> None:
    secret = "sk-the-key-of-the-team"
    environment = {**os.environ, "RAY_ADDRESS": "local", "TERN_KEYS": secret}
    done = subprocess.run([sys.executable, "-c", WORKER, str(tiny_model_dir)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(digest(secret).hex()) == 2, "of the worker and of the raylet: they have its digest"
    assert secret not in done.stdout + done.stderr


def test_a_mistake_that_a_replica_finds_is_told_as_a_mistake() -> None:
    text = "Traceback (most recent call last):\n  File ...\nValueError: config.json: broken; save it again\n"
    assert str(_why({"spot": text}, "Failed to update")) == "config.json: broken; save it again"
    assert isinstance(_why({"spot": "out of memory"}, ""), RuntimeError)


class Gateways:
    """Stands in for a handle to gateways of which some have died: what each call gets from them, by method."""

    def __init__(self, **told: list[Any]) -> None:
        self.told, self.asked = told, []

    def broadcast(self, method: str) -> "Gateways":
        self.asked.append(method)
        self.now = self.told[method].pop(0) if len(self.told[method]) > 1 else self.told[method][0]
        return self

    def results(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        assert return_exceptions, "one that has died is no reason to cut the others' streams"
        if isinstance(self.now, Exception):
            raise self.now
        return list(self.now)


def let_streams_end(monkeypatch: pytest.MonkeyPatch, gateways: Gateways, grace_s: float = 5.0) -> None:
    monkeypatch.setattr(app, "gateways_of", lambda name: gateways)
    monkeypatch.setattr(app, "_POLL_S", 0.01)
    app._let_streams_end(grace_s, threading.Event())


def test_streams_end_in_order_whatever_has_died_meanwhile(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    dead = ActorDiedError()
    gateways = Gateways(close=[[None, dead], [None, dead], [None]], num_streams=[[3, dead], [dead, 2], TimeoutError(), [1, 0], [0, 0]])
    let_streams_end(monkeypatch, gateways)
    assert gateways.asked == ["close", "num_streams"] * 5, "who takes a dead one's place is told as well"
    said = capsys.readouterr().err
    assert "3 streams go on to their end" in said
    assert "cut" not in said


def test_with_all_gateways_dead_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gone = DeploymentUnavailableError(DeploymentID("gateway"))
    let_streams_end(monkeypatch, Gateways(close=[gone], num_streams=[gone]))
    assert capsys.readouterr().err == ""


def test_one_that_does_not_answer_is_waited_for_and_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    let_streams_end(monkeypatch, Gateways(close=[[None]], num_streams=[[TimeoutError()]]), grace_s=0.1)
    said = capsys.readouterr().err
    assert "gateways that do not answer: 1" in said
    assert "streams were cut" in said


def test_a_driver_off_the_heads_machine_is_sent_there() -> None:
    nodes = [
        {"NodeID": "h", "NodeManagerAddress": "10.0.0.1", "Resources": {"node:__internal_head__": 1.0}},
        {"NodeID": "beside", "NodeManagerAddress": "10.0.0.1", "Resources": {}},
        {"NodeID": "w", "NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 4.0}},
    ]
    _refuse_elsewhere(nodes, "h")
    _refuse_elsewhere(nodes, "beside")
    with pytest.raises(ValueError, match=r"head \(10\.0\.0\.1\), and this is another machine \(10\.0\.0\.2\); run it on the head") as error:
        _refuse_elsewhere(nodes, "w")
    assert "\n" not in str(error.value)
