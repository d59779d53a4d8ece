"""Binding the application: what is refused before anything starts, and how a start that fails is told."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from serve.app import _refuse_elsewhere, _why, build, deployed, running
from serve.config import ServeConfig
from serve.engine.config import EngineConfig


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


def test_a_mistake_that_a_replica_finds_is_told_as_a_mistake() -> None:
    text = "Traceback (most recent call last):\n  File ...\nValueError: config.json: broken; save it again\n"
    assert str(_why({"spot": text}, "Failed to update")) == "config.json: broken; save it again"
    assert isinstance(_why({"spot": "out of memory"}, ""), RuntimeError)


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
