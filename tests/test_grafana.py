"""The Grafana dashboard: it asks only for figures that the service exports, and has the shape that Grafana imports."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.engine.batch import Counters
from serve.telemetry.metrics import LEVELS, GatewayMetrics, page

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = {"sum", "rate", "increase", "histogram_quantile", "by", "le"}


@pytest.fixture(scope="module")
def board() -> dict[str, Any]:
    return json.loads((ROOT / "deploy" / "grafana.json").read_text())


def exported() -> dict[str, set[str]]:
    """Every name that /metrics can show, with the names of its labels."""
    metrics = GatewayMetrics()
    metrics.refused("key")
    metrics.answered("/v1/models", 200)
    metrics.moved("kv", 0.1)
    metrics.watch(type("Door", (), {"streams": {}, "backlog": ()})())
    stats = {**dict.fromkeys(LEVELS, 0), **asdict(Counters()), "replica_id": "r", "node_id": "n", "market": "spot", "draining": False}
    costs = {"by": [{"market": "spot", "dollars": 1.0, "on_demand_dollars": 2.0}]}
    families = text_string_to_metric_families(page([("g", metrics.families())], [stats], costs).decode())
    found: dict[str, set[str]] = {}
    for sample in (sample for family in families for sample in family.samples):
        found.setdefault(sample.name, set()).update(sample.labels)
    return found


def queries(board: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]


def test_it_asks_only_for_what_is_exported(board):
    names = exported()
    assert len(queries(board)) > 20
    for query in queries(board):
        asked = set(re.findall(r"sterna_\w+", query))
        assert asked, query
        assert asked <= set(names), (query, asked - set(names))
        labels = {name.strip() for group in re.findall(r"by \(([^)]*)\)", query) for name in group.split(",")}
        labels |= set(re.findall(r"(\w+)=\"", query))
        assert all(labels <= names[name] for name in asked), (query, labels)


def test_every_figure_of_the_gateways_is_on_it(board):
    text = " ".join(queries(board))
    gateways = {name for name, labels in exported().items() if "gateway" in labels and not name.endswith(("_created", "_sum", "_count"))}
    assert [name for name in sorted(gateways) if name not in text] == []


def test_its_legends_name_labels_that_the_query_keeps(board):
    names = exported()
    for target in (target for panel in board["panels"] for target in panel.get("targets", [])):
        grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
        kept = {name.strip() for group in grouped for name in group.split(",")}
        kept = kept or ({"replica", "market", "node"} if "sum(" not in target["expr"] else set())
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, target
    assert names


def test_it_has_the_shape_that_grafana_imports(board):
    (source,) = board["__inputs"]
    assert (source["type"], source["pluginId"]) == ("datasource", "prometheus")
    assert board["title"] == "Sterna"
    assert board["schemaVersion"] >= 36
    assert {"uid", "time", "refresh", "templating", "annotations", "panels", "__requires"} <= set(board)
    kinds = {need["id"] for need in board["__requires"] if need["type"] == "panel"} | {"row"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert panel["type"] in kinds
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["datasource"]["uid"] == f"${{{source['name']}}}"
        assert [target["refId"] for target in panel["targets"]] == [chr(65 + n) for n in range(len(panel["targets"]))]
        assert panel["title"]
        assert panel["description"]


def test_no_panel_lies_on_another(board):
    taken: dict[tuple[int, int], int] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
            assert taken.setdefault(cell, panel["id"]) == panel["id"], panel["title"]
