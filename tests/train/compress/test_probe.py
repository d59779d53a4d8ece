"""The fast judge against the plain one, and what it leaves behind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.train.compress.plain_model import Plain
from train.compress.divergence import judge, make_reference
from train.compress.probe import Probe, exchanged, layer_of
from train.compress.quantize import linear_layers, load_dense, round_to_nearest

FIELDS = ("likeliest", "losses", "margins", "kl")


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return load_dense(tiny_model_dir, torch.float32)


@pytest.fixture(scope="module")
def reference(model):
    """Completions of unequal length after prompts of unequal length."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(4, 400, rng.integers(4, 24)).tolist() for _ in range(13)]
    cuts = [int(rng.integers(1, len(text))) for text in texts]
    return make_reference(
        Plain(model), [t[:c] for t, c in zip(texts, cuts, strict=True)], [t[c:] for t, c in zip(texts, cuts, strict=True)]
    )


def rough(model, names):
    plan = {}
    for name in names:
        q, scale = round_to_nearest(model.get_submodule(name).weight, torch.float32)
        plan[name] = torch.round(q.float() / 16) * 16 * scale
    return plan


def changed(model, plan):
    other = copy.deepcopy(model)
    for name, weight in plan.items():
        other.get_submodule(name).weight.data = weight
    return Plain(other)


def plans(model):
    names = [name for name in linear_layers(model) if name != "lm_head"]
    last = [name for name in names if f".{model.config.num_hidden_layers - 1}." in name]
    return {"all": names, "the last layer": last, "one": last[-1:], "none": [], "the embedding": ["model.embed_tokens"]}


@pytest.mark.parametrize("kind", ["all", "the last layer", "one", "none", "the embedding"])
@pytest.mark.parametrize("keep_bytes", [1 << 30, 1])
def test_it_says_what_the_plain_judge_says(model, reference, kind, keep_bytes):
    plan = rough(model, plans(model)[kind])
    expected = judge(changed(model, plan), reference)
    found = Probe(copy.deepcopy(model), reference, batch_tokens=64, keep_bytes=keep_bytes).traces(plan)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.likeliest == theirs.likeliest).mean() > 0.99
        for name in FIELDS[1:]:
            assert getattr(mine, name) == pytest.approx(getattr(theirs, name), abs=2e-5), name
    assert (sum(trace.kl.sum() for trace in found) > 1e-3) == bool(plan)


def test_less_of_the_top_is_judged_the_same_way(model, reference):
    few = make_reference(Plain(model), reference.prompts, reference.completions, top=20)
    plan = rough(model, plans(model)["all"])
    for mine, theirs in zip(Probe(copy.deepcopy(model), few).traces(plan), judge(changed(model, plan), few), strict=True):
        assert mine.kl == pytest.approx(theirs.kl, abs=2e-5)


def test_the_model_is_as_it_was(model, reference):
    kept = copy.deepcopy(model)
    probe = Probe(kept, reference)
    probe.traces(rough(model, plans(model)["all"]))
    with pytest.raises(RuntimeError), exchanged(kept, rough(model, plans(model)["one"])):
        raise RuntimeError
    for (name, mine), theirs in zip(kept.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert not any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in kept.modules())


def test_what_lies_below_the_change_is_not_computed_again(model, reference):
    probe = Probe(copy.deepcopy(model), reference)
    probe.traces(rough(model, plans(model)["all"]))
    whole = probe.passes
    probe.traces(rough(model, plans(model)["one"]))
    assert probe.passes - whole < whole
    assert layer_of(model, plans(model)["one"][0]) == model.config.num_hidden_layers - 1
    assert layer_of(model, "model.embed_tokens") == layer_of(model, "lm_head") == 0


def test_the_original_is_passed_once_and_only_where_that_spares_something(model, reference):
    probe = Probe(copy.deepcopy(model), reference)
    seen = []
    probe.layers[0].self_attn.register_forward_hook(lambda *_: seen.append(1))
    probe.traces(rough(model, plans(model)["all"]))
    assert len(seen) == len(probe.batches)
    for _ in range(2):
        probe.traces(rough(model, plans(model)["one"]))
        assert len(seen) == 2 * len(probe.batches)
