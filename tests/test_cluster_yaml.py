"""cluster.yaml is accepted by Ray's own validation, keeps what must last off spot machines, and starts the watcher on every one."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from cluster.notices import WatchConfig
from cluster.settings import field_help
from serve.app import GATEWAY_NODES

ROOT = Path(__file__).resolve().parents[1]
MARKET = "ray.io/market-type"


@pytest.fixture(scope="module")
def config() -> dict:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(prepared)
    return prepared


def is_spot(node: dict) -> bool:
    return node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"


def test_labels_say_what_the_market_is(config):
    for node in config["available_node_types"].values():
        assert node["labels"][MARKET] == ("spot" if is_spot(node) else "on-demand")


def test_labels_say_what_a_machine_is_and_where_so_that_it_can_be_priced(config):
    for node in config["available_node_types"].values():
        assert node["labels"]["sterna.io/instance-type"] == node["node_config"]["InstanceType"]
        assert node["labels"]["ray.io/availability-region"] == config["provider"]["region"]


def test_head_and_gateways_are_on_demand_and_take_no_work(config):
    nodes = config["available_node_types"]
    for name in (config["head_node_type"], "gateway"):
        assert not is_spot(nodes[name])
        assert nodes[name]["resources"]["CPU"] == 0
    assert nodes["gateway"]["min_workers"] >= 1


def test_gateways_prefer_the_gateway_nodes(config):
    wanted = GATEWAY_NODES["label_selector"]
    fits = {
        name
        for name, node in config["available_node_types"].items()
        if all(
            (node["labels"][key] != value[1:]) if value.startswith("!") else (node["labels"][key] == value) for key, value in wanted.items()
        )
    }
    assert fits == {"gateway"}


def test_spot_workers_are_of_several_types_over_several_zones(config):
    spot = [node for node in config["available_node_types"].values() if is_spot(node)]
    assert len({node["node_config"]["InstanceType"] for node in spot}) >= 3
    assert len(set(config["provider"]["availability_zone"].split(","))) >= 3
    assert all(node["node_config"]["InstanceMarketOptions"]["SpotOptions"]["InstanceInterruptionBehavior"] == "terminate" for node in spot)
    assert not config["provider"]["cache_stopped_nodes"]


def test_metadata_is_asked_with_tokens_only(config):
    assert all(node["node_config"]["MetadataOptions"]["HttpTokens"] == "required" for node in config["available_node_types"].values())


def test_what_each_machine_makes_for_itself_is_not_copied(config):
    assert {".venv/", "runs/", "data/", ".git/"} <= set(config["rsync_exclude"])


def test_the_installation_is_pinned(config):
    assert any("--constraint constraints.txt" in command for command in config["setup_commands"])
    assert (ROOT / "constraints.txt").is_file()


def run_watch_command(config: dict, home: Path, market: str) -> None:
    """The last of the workers' start commands, as ray's updater runs it: in bash, with the labels in the environment."""
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "RAY_HEAD_IP": "10.0.0.1",
        "RAY_OVERRIDE_LABELS": json.dumps({MARKET: market}),
    }
    subprocess.run(["bash", "-c", config["worker_start_ray_commands"][-1]], env=environment, check=True, timeout=20)


@pytest.fixture
def home(tmp_path) -> Path:
    """A home folder whose `sterna` writes down how it was called and stays."""
    program = tmp_path / "sterna" / ".venv" / "bin" / "sterna"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/bash\necho "$@" >> ~/called\nexec sleep 30\n')
    program.chmod(0o755)
    return tmp_path


def called(home: Path, times: int) -> list[str]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        lines = (home / "called").read_text().splitlines() if (home / "called").exists() else []
        if len(lines) >= times:
            return lines
        time.sleep(0.02)
    raise AssertionError(f"the watcher was not started {times} times")


def gone(pid: int) -> bool:
    """Whether the process ends within 10 s (an unreaped one has ended)."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_spot_node_starts_the_watcher_and_replaces_an_earlier_one(config, home):
    run_watch_command(config, home, "spot")
    (line,) = called(home, 1)
    first = int((home / "sterna-watch.pid").read_text())
    run_watch_command(config, home, "spot")
    called(home, 2)
    second = int((home / "sterna-watch.pid").read_text())
    os.kill(second, 15)
    assert second != first
    assert gone(first)
    flags = shlex.split(line)
    assert flags[:2] == ["cluster", "watch"]
    assert {flag.removeprefix("--").replace("-", "_") for flag in flags if flag.startswith("--")} <= set(field_help(WatchConfig))
    assert flags[flags.index("--address") + 1] == "10.0.0.1:6379"


def test_an_on_demand_node_starts_none(config, home):
    run_watch_command(config, home, "on-demand")
    assert not (home / "sterna-watch.pid").exists()


def test_ray_starts_before_the_watcher_and_every_worker_joins_the_head(config):
    starts = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
    assert len(starts) == 1
    assert "--address=$RAY_HEAD_IP:6379" in starts[0]
    assert config["worker_start_ray_commands"].index(starts[0]) < len(config["worker_start_ray_commands"]) - 1
