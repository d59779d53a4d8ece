"""What the controller is told: plain data, with the node types of a cluster file that could hold a replica."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.autoscaling import steward
from serve.config import ServeConfig
from serve.policy_settings import policy_settings

KINDS = {
    "head": {"resources": {"CPU": 0}, "node_config": {}},
    "small": {"resources": {"CPU": 4}, "max_workers": 3, "labels": {"ray.io/market-type": "spot"}, "node_config": {}},
    "large": {"resources": {"CPU": 16}, "max_workers": 2, "labels": {"ray.io/market-type": "spot"}, "node_config": {"InstanceType": "m"}},
}


def told(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump({"provider": {"region": "north"}, "head_node_type": "head", "available_node_types": KINDS}))
    return policy_settings(ServeConfig(model="m", autoscaling=True, cluster=str(file), **settings))


def test_types_that_hold_no_replica_are_left_out(tmp_path: Path) -> None:
    settings = told(tmp_path, cpus_per_replica=8)
    assert [kind["name"] for kind in settings["types"]] == ["large"]
    assert json.loads(json.dumps(settings)) == settings
    ground = steward(settings).ground
    assert (ground.zone, ground.cpus, ground.types[0].max_workers) == ("north", 8, 2)


def test_without_a_cluster_file_ray_chooses_the_machines() -> None:
    settings = policy_settings(ServeConfig(model="m", autoscaling=True))
    assert (settings["types"], settings["zone"]) == ([], "local")


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of its node types holds a replica \(32 CPUs, 0 GPUs\)"):
        told(tmp_path, cpus_per_replica=32)
    with pytest.raises(ValueError, match="cannot be read"):
        policy_settings(ServeConfig(model="m", autoscaling=True, cluster=str(tmp_path / "nowhere")))
    for text, why in (("a: [", "is not YAML"), ("[]", "is not a cluster file"), ("{}", "has no available_node_types")):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(ValueError, match=why) as error:
            policy_settings(ServeConfig(model="m", autoscaling=True, cluster=str(tmp_path / "bad")))
        assert "\n" not in str(error.value)


def test_counts_may_begin_at_nothing_only_with_autoscaling() -> None:
    assert ServeConfig(model="m", on_demand_replicas=0, autoscaling=True).spot_replicas == 0
    with pytest.raises(ValueError, match="no replica at all"):
        ServeConfig(model="m", on_demand_replicas=0)
