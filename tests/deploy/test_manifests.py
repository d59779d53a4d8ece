"""The files that deploy a service: each is what its reader takes, and all of them mean the same labels."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster.machines import node_types
from cluster.runtime import ENVIRONMENT
from cluster.settings import parse
from serve.app import GATEWAY_NODES, MARKET, SELECTORS, nested
from serve.config import ServeConfig
from serve.scaling.ground import POOL_LABEL
from serve.scaling.policy_settings import policy_settings

ROOT = Path(__file__).resolve().parents[2]
ROLE = "sterna.io/role"


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


CLUSTER, SERVE, KUBE = load("cluster.yaml"), load("deploy/serve.yaml"), load("deploy/rayservice.yaml")
SPEC = KUBE["spec"]["rayClusterConfig"]
RAY_GROUPS = {"head": SPEC["headGroupSpec"], **{group["groupName"]: group for group in SPEC["workerGroupSpecs"]}}
RAY_STARTS = [line for key in ("head", "worker") for line in CLUSTER[f"{key}_start_ray_commands"] if "ray start" in line]
SERVE_ON_KUBE = yaml.safe_load(KUBE["spec"]["serveConfigV2"])


def satisfied(labels: dict[str, str], selector: dict[str, str]) -> bool:
    return all(labels.get(key) != value[1:] if value.startswith("!") else labels.get(key) == value for key, value in selector.items())


def labels_of_types() -> dict[str, dict[str, str]]:
    return {name: kind["labels"] for name, kind in CLUSTER["available_node_types"].items()}


def labels_of_groups() -> dict[str, dict[str, str]]:
    return {name: group["labels"] for name, group in RAY_GROUPS.items()}


@pytest.mark.parametrize("document", [SERVE, SERVE_ON_KUBE])
def test_serve_takes_the_config_file_and_we_its_arguments(document: dict[str, Any]) -> None:
    (app,) = ServeDeploySchema.model_validate(document).applications
    assert (app.import_path, app.name, document["proxy_location"]) == ("serve.app:build", "sterna", "HeadOnly")
    config = parse(ServeConfig, nested(app.args), where="test")
    assert config.autoscaling
    assert config.autoscale.max_replicas == 12


def test_both_config_files_ask_for_the_same() -> None:
    mine, theirs = ({k: v for k, v in d["applications"][0]["args"].items() if k != "cluster"} for d in (SERVE, SERVE_ON_KUBE))
    assert mine == theirs


def test_the_policies_are_told_the_node_types_of_the_cluster_file() -> None:
    config = parse(ServeConfig, {**SERVE["applications"][0]["args"], "cluster": str(ROOT / "cluster.yaml")}, where="test")
    told = policy_settings(config)
    assert json.loads(json.dumps(told)) == told
    assert {kind["name"] for kind in told["types"]} == {kind.name for kind in node_types(CLUSTER) if not kind.resources.get("GPU")}
    assert (told["region"], told["zone"], told["zones"]) == ("us-west-2", "us-west-2", {}), "Ray chooses among its zones"
    assert told["prices"].keys() == {kind["name"] for kind in told["types"]}, "each has a price, if only the list's"
    assert told["prices"]["spot_cpu_m7i"] < told["prices"]["on_demand_cpu"] * 2


@pytest.mark.parametrize("labels", [labels_of_types(), labels_of_groups()], ids=["ray up", "KubeRay"])
def test_each_deployment_has_machines_to_run_on_and_gateways_none_that_vanish(labels: dict[str, dict[str, str]]) -> None:
    workers = {name: own for name, own in labels.items() if own[ROLE] == "worker"}
    homes = {name: {kind for kind, own in workers.items() if satisfied(own, {MARKET: market})} for name, market in SELECTORS.items()}
    assert homes["spot"]
    assert homes["on_demand"]
    assert homes["spot"] | homes["on_demand"] == set(workers)
    assert not homes["spot"] & homes["on_demand"]
    gateways = [name for name, own in labels.items() if satisfied(own, GATEWAY_NODES["label_selector"])]
    assert gateways == ["gateway"]
    assert all(own[POOL_LABEL] == name for name, own in workers.items()), "machines of one type can be asked for by name"


def test_a_type_is_labelled_spot_if_and_only_if_it_is_rented_so() -> None:
    for name, kind in CLUSTER["available_node_types"].items():
        rented = kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType", "on-demand")
        assert rented == kind["labels"][MARKET], name


def test_ray_up_takes_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(CLUSTER))


def test_the_manifest_is_what_kuberay_defines() -> None:
    schema = json.loads((Path(__file__).parent / "rayservice.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(KUBE)
    broken = {**KUBE, "spec": {**KUBE["spec"], "rayClusterDeletionDelaySecs": 5}}
    with pytest.raises(jsonschema.ValidationError, match="rayClusterDeletionDelaySecs"):
        jsonschema.Draft202012Validator(schema).validate(broken)


@pytest.mark.parametrize("group", RAY_GROUPS)
def test_each_container_that_needs_the_heads_address_is_told_it(group: str) -> None:
    """KubeRay's operator (ray-operator/controllers/ray/common/pod.go) sets FQ_RAY_IP in a worker's first container and in every pod's init
    containers, and nowhere else."""
    pod = RAY_GROUPS[group]["template"]["spec"]
    first, *others = pod["containers"]
    told = [*pod.get("initContainers", []), *([] if group == "head" else [first])]
    needing = [each for each in (*told, first, *others) if "FQ_RAY_IP" in json.dumps(each) or "sterna" in json.dumps(each.get("command"))]
    assert all(each in told for each in needing)
    assert [each["name"] for each in needing] == (["watch"] if group == "spot" else []), "each spot machine, and no other, is watched"
    assert all(each["restartPolicy"] == "Always" for each in needing), "beside Ray, not before it"


@pytest.mark.parametrize("group", RAY_GROUPS)
def test_ray_is_started_with_the_same_environment_everywhere(group: str) -> None:
    pod = RAY_GROUPS[group]["template"]["spec"]
    found = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    serve = {name: value for name, value in ENVIRONMENT.items() if name.startswith("RAY_SERVE_")}
    assert {name: value for name, value in found.items() if name.startswith("RAY_SERVE_")} == serve
    assert all(f"{name}={value}" in command for name, value in serve.items() for command in RAY_STARTS)
    if "terminationGracePeriodSeconds" in pod:
        assert 30 < int(found["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) < pod["terminationGracePeriodSeconds"]


def test_the_manifest_is_what_kuberays_own_definition_says() -> None:
    path = os.environ.get("STERNA_KUBERAY_CRD")
    if not path:
        pytest.skip("STERNA_KUBERAY_CRD names no copy of KubeRay's ray.io_rayservices.yaml")
    versions = yaml.load(Path(path).read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    schema = next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    jsonschema.Draft202012Validator(closed(schema)).validate(KUBE)


def closed(schema: Any) -> Any:
    """The schema as a Kubernetes server reads it: what it does not name is dropped there, so here it is a mistake."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and schema["properties"].keys() - {"metadata"}:
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    return made
