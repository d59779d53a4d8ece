"""A cluster file made small: what a rehearsal keeps of it. (tests/chaos/test_fleet.py runs one.)"""

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.machines import node_types
from cluster.rehearsal import Rehearsal, rehearsal_document

CLUSTER = yaml.safe_load((Path(__file__).resolve().parents[2] / "cluster.yaml").read_text())


def test_a_rehearsal_keeps_names_labels_and_limits_and_cuts_machines_down() -> None:
    small = rehearsal_document(CLUSTER, cpus=1)
    kinds = {name: kind for name, kind in small["available_node_types"].items() if name != small["head_node_type"]}
    assert kinds.keys() == CLUSTER["available_node_types"].keys() - {"head"}
    for name, kind in kinds.items():
        whole = CLUSTER["available_node_types"][name]
        assert kind["labels"] == whole["labels"]
        assert kind.get("max_workers") == whole.get("max_workers")
        assert kind["resources"]["CPU"] == min(1, whole["resources"]["CPU"])
    assert small["available_node_types"][small["head_node_type"]]["labels"] == CLUSTER["available_node_types"]["head"]["labels"]
    assert [t.name for t in node_types(small)] == [t.name for t in node_types(CLUSTER)], "the policies see the same types"


def test_ray_takes_the_document() -> None:
    validate_config(prepare_config(rehearsal_document(CLUSTER)))


def test_the_dry_list_is_replaced_whole(tmp_path: Path) -> None:
    rehearsed = Rehearsal("nowhere:1", tmp_path)
    rehearsed.run_dry("a", "b")
    rehearsed.run_dry("c")
    assert (tmp_path / "dry.json").read_text() == '["c"]'
    rehearsed.run_dry()
    assert (tmp_path / "dry.json").read_text() == "[]"
    assert [file.name for file in tmp_path.iterdir()] == ["dry.json"]
