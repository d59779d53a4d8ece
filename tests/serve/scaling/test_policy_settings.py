"""What the controller is told: plain data, with the node types of a cluster file that could hold a replica."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.autoscale import AutoscaleSettings
from cluster.market import SPOT, Observations, Pool
from cluster.placement import PlacementSettings
from cluster.price_book import Price, PriceBook
from cluster.prices import PricesConfig, Quotes
from serve.config import ServeConfig
from serve.scaling import policy_settings as module
from serve.scaling.autoscaling import steward
from serve.scaling.policy_settings import PRICES_S, policy_settings, prices_now

KINDS = {
    "head": {"resources": {"CPU": 0}, "node_config": {}},
    "small": {"resources": {"CPU": 4}, "max_workers": 3, "labels": {"ray.io/market-type": "spot"}, "node_config": {}},
    "large": {"resources": {"CPU": 16}, "max_workers": 2, "labels": {"ray.io/market-type": "spot"}, "node_config": {"InstanceType": "m"}},
}


def told(tmp_path: Path, kinds: dict[str, Any] = KINDS, provider: dict[str, str] | None = None, **settings: Any) -> dict[str, Any]:
    file = tmp_path / "cluster.yaml"
    document = {"provider": provider or {"region": "north"}, "head_node_type": "head", "available_node_types": kinds}
    file.write_text(yaml.safe_dump(document))
    return policy_settings(ServeConfig(model="m", autoscaling=True, cluster=str(file), **settings))


def test_types_that_hold_no_replica_are_left_out(tmp_path: Path) -> None:
    settings = told(tmp_path, cpus_per_replica=8)
    assert [kind["name"] for kind in settings["types"]] == ["large"]
    assert json.loads(json.dumps(settings)) == settings
    ground = steward(settings).ground
    assert (ground.zone, ground.cpus, ground.types[0].max_workers) == ("north", 8, 2)


GPU = {"resources": {"CPU": 16, "GPU": 1}, "max_workers": 2, "labels": {"ray.io/market-type": "spot"}, "node_config": {}}


def test_machines_with_gpus_are_for_replicas_that_use_them_if_there_are_others(tmp_path: Path) -> None:
    def names(**settings: Any) -> list[str]:
        return [kind["name"] for kind in told(tmp_path, **settings)["types"]]

    assert names(kinds={**KINDS, "gpu": GPU}, cpus_per_replica=8) == ["large"]
    assert names(kinds={**KINDS, "gpu": GPU}, cpus_per_replica=8, gpus_per_replica=1) == ["gpu"]
    assert names(kinds={"head": KINDS["head"], "gpu": GPU}, cpus_per_replica=8) == ["gpu"], "better than none"


AWS = {"type": "aws", "region": "us-west-2", "availability_zone": "us-west-2a,us-west-2b"}


def typed(zone: str = "") -> dict[str, Any]:
    labels = {"ray.io/market-type": "spot"} | ({"ray.io/availability-zone": zone} if zone else {})
    return {"resources": {"CPU": 16}, "max_workers": 2, "labels": labels, "node_config": {"InstanceType": "m7i.4xlarge"}}


def test_a_type_in_a_zone_of_its_own_is_a_pool_of_it_at_its_price_and_others_are_of_the_region(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = [Price(Pool(f"us-west-2{zone}", "m7i.4xlarge"), SPOT, cost) for zone, cost in (("a", 0.2), ("b", 0.3), ("c", 0.4))]
    asked: list[float] = []

    def quotes(types: list[str], region: str, config: PricesConfig) -> Quotes:
        asked.append(config.max_age_s)
        return Quotes(PriceBook.of(history), tuple(types), region, "AWS", 0.0)

    monkeypatch.setattr(module, "quotes", quotes)
    kinds = {"head": KINDS["head"], "here": typed("us-west-2a"), "there": typed("us-west-2b"), "anywhere": typed()}
    settings = told(tmp_path, kinds, AWS)
    assert settings["prices"] == {"here": 0.2, "there": 0.3, "anywhere": 0.4}, "the dearest zone's where it may be any"
    assert asked == [PRICES_S]
    offers = steward(settings).ground.market(Observations()).offers
    assert {offer.pool for offer in offers} == {Pool("us-west-2a", "here"), Pool("us-west-2b", "there"), Pool("us-west-2", "anywhere")}
    history[:] = [Price(Pool("us-west-2a", "m7i.4xlarge"), SPOT, 0.5)]
    assert prices_now(settings) == {"here": 0.5, "there": 0.5, "anywhere": 0.5}


def test_without_a_cluster_file_ray_chooses_the_machines() -> None:
    settings = policy_settings(ServeConfig(model="m", autoscaling=True))
    assert (settings["types"], settings["zone"]) == ([], "local")


def test_placement_is_told_what_the_service_has_settled() -> None:
    scale, place = AutoscaleSettings(utilization=0.5), PlacementSettings(min_on_demand=2, utilization=0.9)
    told_ = policy_settings(ServeConfig(model="m", autoscaling=True, autoscale=scale, placement=place, max_wait_s=70.0))["placement"]
    assert (told_["utilization"], told_["patience_s"], told_["min_on_demand"]) == (0.5, 70.0, 2)


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
