"""Duplicates over a corpus in pieces: the rule over all pairs, whatever the pieces, the way to the candidates, and the memory."""

from __future__ import annotations

import dataclasses
import random

import pytest

from pipelines.curate import dedup, label
from pipelines.curate.dedup import duplicates
from tests.pipelines.curate.corpora import CONFIG, by_definition, fates_by_id, here, id_of, in_bundles, texts_like

WAYS = {"driver": 1 << 30, "edges on the driver": 2000, "rounds": 1}
"""`driver_bytes` for each way to the candidates of 32 documents."""


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.setattr(dedup, "in_tasks", here)
    monkeypatch.setattr(label, "in_tasks", here)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(8))
def test_the_verdicts_are_the_rule_over_all_pairs(seed, way, tmp_path, without_ray):
    """In one group and in many, with all sets at hand and with hardly any."""
    texts, cuts = texts_like(seed), sorted(random.Random(seed).sample(range(1, 30), seed % 4))
    config = dataclasses.replace(CONFIG, driver_bytes=WAYS[way], task_bytes=[1 << 26, 1000, 8000][seed % 3])
    bundles = in_bundles(texts, cuts, tmp_path, most_chars=[1, 2000, 1 << 20][seed % 3])
    compared = duplicates(bundles, config, str(tmp_path / "work"))
    found = fates_by_id(bundles, compared.fates)
    assert found == by_definition(texts, [id_of("", n) for n in range(len(texts))])
    reasons = [reason for reason, _, _ in found.values()]
    assert {"duplicate.exact", "duplicate.near"} == set(reasons)
    assert sum(compared.similarities) == reasons.count("duplicate.near")
    assert (compared.rounds > 0) == (way == "rounds")


def test_ray_gives_the_same_verdicts_by_rounds(tmp_path, ray_session):
    texts = texts_like(3)
    config = dataclasses.replace(CONFIG, driver_bytes=1, task_bytes=2000)
    bundles = in_bundles(texts, [7, 8, 20], tmp_path)
    compared = duplicates(bundles, config, str(tmp_path / "work"))
    assert compared.rounds > 0
    assert fates_by_id(bundles, compared.fates) == by_definition(texts, [id_of("", n) for n in range(len(texts))])


@pytest.mark.parametrize("way", WAYS)
def test_without_candidates_nothing_is_compared(way, tmp_path, without_ray):
    config = dataclasses.replace(CONFIG, driver_bytes=WAYS[way])
    bundles = in_bundles(["a b c d e f", "?!", "g h i j k l"], [1], tmp_path)
    compared = duplicates(bundles, config, str(tmp_path / "work"))
    assert (compared.num_candidates, compared.fates.num_files) == (0, 0)
    assert fates_by_id(bundles, compared.fates) == {}
