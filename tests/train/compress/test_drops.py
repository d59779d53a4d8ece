"""Blocks that the search may leave out: harms that are true, folders that are smaller, and a plan that holds what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from tests.train.compress.plain_model import Plain
from train.compress import drops
from train.compress.calibrate import matrices, weight_of
from train.compress.candidates import degraded
from train.compress.divergence import make_reference
from train.compress.drops import with_drops
from train.compress.export import export
from train.compress.find import find, judged, offer, probe_of
from train.compress.options import option, parse_options
from train.compress.quantize import load_dense
from train.compress.shelf import Shelf
from train.compress.store import Store
from train.compress.structure import blocks_of, without_blocks
from train.compress.units import apart

TOKENS = list(range(5, 37))
DROPS = parse_options("drop-block,drop-attention,drop-mlp")


@pytest.fixture(scope="module")
def ground(tiny_model_dir):
    """(model, probe, plain offer)."""
    model = load_dense(tiny_model_dir)
    rows = np.random.default_rng(4).integers(4, 400, (12, 18)).tolist()
    exact = load_dense(tiny_model_dir, torch.float32)
    probe = probe_of(model, make_reference(Plain(exact), [row[:8] for row in rows], [row[8:] for row in rows]))
    return model, probe, offer(model, probe, parse_options("int8,int4-rtn"), {})


def dropped(model, chosen, name):
    """The variants of block `chosen` under the drop `name`."""
    block = blocks_of(model)[chosen]
    gone = {"drop-block": block.matrices, "drop-attention": block.attention, "drop-mlp": block.mlp}[name]
    return {each: degraded(weight_of(model, each), option(name), None) for each in gone}


@pytest.mark.parametrize("name", [each.name for each in DROPS])
def test_a_folder_without_it_gives_the_logits_of_zeros_in_transformers_and_in_our_engine(name, tiny_model_dir, tmp_path):
    from transformers import AutoModelForCausalLM

    model = load_dense(tiny_model_dir)
    last = [block.name for block in blocks_of(model)][-1]
    variants = dropped(model, 0, name) | {f"{last}.mlp.up_proj": degraded(weight_of(model, f"{last}.mlp.up_proj"), option("int8"), None)}
    expected = load_dense(tiny_model_dir, torch.float32)
    for each, variant in variants.items():
        weight_of(expected, each).data.copy_(variant.dense)
    assert export(model, variants, tiny_model_dir, tmp_path).readers == ("sterna", "transformers")
    layers = json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"]
    assert layers == model.config.num_hidden_layers - (name == "drop-block")
    logits = Plain(expected).logits(TOKENS)
    found = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(Plain(found).logits(TOKENS), logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(Engine.load(tmp_path, EngineConfig(dtype="float32")).runner.logits(TOKENS), logits, rtol=0, atol=1e-4)
    assert len(blocks_of(model)) == model.config.num_hidden_layers, "the model is left as it was"


def test_harms_are_those_of_the_model_without_the_block(ground, monkeypatch):
    model, probe, plain = ground
    monkeypatch.setattr(drops, "_HOPELESS", float("inf"))
    offered = with_drops(plain, model, probe, DROPS, objective="bytes", seconds=None, shelf=Shelf())
    assert set(offered.units) == {block.name for block in blocks_of(model)}
    harms = []
    for block in blocks_of(model):
        smaller, _ = without_blocks(probe.model, {block.name})
        true = judged_kl(smaller, probe.reference)
        harms.append(true)
        whole = [each for each in offered.candidates if each.option == "/".join(["drop-block"] * 7) and each.matrix == block.name]
        assert [each.bytes for each in whole] in ([0], [])
        assert all(each.harm == pytest.approx(true, rel=1e-3) for each in whole)
        if not whole:
            stays = true
    assert stays == max(harms), "one block stays, the one that is missed most"


def judged_kl(model, reference):
    from train.compress.divergence import judge

    return float(np.concatenate([trace.kl for trace in judge(Plain(model), reference)]).mean())


def test_harms_are_measured_once(ground, tmp_path):
    model, probe, plain = ground
    given = {"objective": "bytes", "seconds": None}
    first = with_drops(plain, model, probe, DROPS, shelf=Shelf(Store(tmp_path), "m"), **given)
    passes = probe.passes
    again = with_drops(plain, model, probe, DROPS, shelf=Shelf(Store(tmp_path), "m"), **given)
    assert probe.passes == passes
    assert again.candidates == first.candidates


def test_a_plan_that_drops_holds_where_it_was_judged(ground, monkeypatch):
    model, probe, plain = ground
    monkeypatch.setattr(drops, "_HOPELESS", float("inf"))
    offered = with_drops(plain, model, probe, DROPS, objective="bytes", seconds=None, shelf=Shelf())
    found = find(offered, probe, {"kl": 5.0}, held_out=2000, levels=6)
    assert found.met
    assert judged(probe.reference, probe.traces(offered.weights(found.plan)), 2000) == found.judged
    chosen = apart(found.plan, offered.units)
    assert chosen.keys() == {matrix.name for matrix in matrices(model)}
    assert any(each.startswith("drop-") for each in chosen.values()), "so loose a budget is kept to without a block"
    tight = find(offered, probe, {"kl": 1e-5}, held_out=2000, levels=6)
    assert not any(each.startswith("drop-") for each in apart(tight.plan, offered.units).values())


def test_what_is_hopeless_is_not_offered(ground, monkeypatch):
    model, probe, plain = ground
    monkeypatch.setattr(drops, "_HOPELESS", 0.0)
    offered = with_drops(plain, model, probe, DROPS, objective="bytes", seconds=None, shelf=Shelf())
    assert offered.units == {}
    assert offered.candidates == plain.candidates
