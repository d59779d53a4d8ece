"""Machines: counted by pool and state; their kinds read from the cluster file that `ray up` reads."""

from pathlib import Path

import pytest
import yaml

from cluster.machines import Fleet, Machine, node_types, zones
from cluster.market import ON_DEMAND, SPOT, Pool

ROOT = Path(__file__).resolve().parents[2]
A, B = Pool("a"), Pool("b")


def test_a_fleet_counts_by_pool_and_state():
    fleet = Fleet((Machine("1", A, SPOT, "ready", 0), Machine("2", A, SPOT, "starting", 0), Machine("3", B, ON_DEMAND, "ready", 0)))
    assert fleet.count(SPOT) == 2
    assert fleet.count(SPOT, "ready") == 1
    assert fleet.by_pool(SPOT, "starting", "ready") == {A: 2}
    assert fleet.by_pool(ON_DEMAND) == {B: 1}


def test_the_cluster_file_s_workers_are_the_kinds():
    kinds = {kind.name: kind for kind in node_types(yaml.safe_load((ROOT / "cluster.yaml").read_text()))}
    assert "head" not in kinds
    assert "gateway" not in kinds
    assert kinds["on_demand_cpu"].market == ON_DEMAND
    assert kinds["spot_cpu_m7i"].market == SPOT
    assert kinds["spot_cpu_m7i"].instance_type == "m7i.4xlarge"
    assert kinds["spot_cpu_m7i"].replicas(cpus=4) == 4
    assert kinds["spot_gpu_g5"].replicas(cpus=4, gpus=1) == 1


def test_zones_are_the_provider_s():
    assert zones({"provider": {"region": "r", "availability_zone": "r-a, r-b"}}) == ["r-a", "r-b"]
    assert zones({"provider": {"region": "r"}}) == ["r"]


def test_a_wrong_cluster_file_is_one_line():
    with pytest.raises(ValueError, match=r"cluster\.yaml: has no available_node_types"):
        node_types({})
    with pytest.raises(ValueError, match=r"w: label ray\.io/market-type is 'bid'"):
        node_types({"available_node_types": {"w": {"labels": {"ray.io/market-type": "bid"}}}})
