"""Predicted harms against measured ones, and the gradients against autograd's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.train.compress.plain_model import Plain
from train.compress.divergence import make_reference
from train.compress.probe import Probe
from train.compress.quantize import linear_layers, load_dense
from train.compress.scores import scores


@pytest.fixture(scope="module")
def probe(tiny_model_dir):
    model = load_dense(tiny_model_dir, torch.float64)
    rng = np.random.default_rng(1)
    texts = [rng.integers(4, 400, 20).tolist() for _ in range(48)]
    return Probe(model, make_reference(Plain(model), [t[:6] for t in texts], [t[6:] for t in texts], top=400))


@pytest.fixture(scope="module")
def changes(probe):
    generator = torch.Generator().manual_seed(0)
    names = [name for name in linear_layers(probe.model) if name != "lm_head"][::3]
    sizes = {"small": 1e-3, "smaller": 3e-4}
    found = {}
    for name in (*names, "model.embed_tokens"):
        weight = probe.model.get_submodule(name).weight.data
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        found[name] = {option: weight + size * noise for option, size in sizes.items()}
    return found


def test_predictions_are_what_a_pass_measures(probe, changes):
    predicted = scores(probe, changes, draws=8)
    assert set(predicted) == {(name, option) for name, each in changes.items() for option in each}
    ratios = []
    for (name, option), score in predicted.items():
        true = np.concatenate([trace.kl for trace in probe.traces({name: changes[name][option]})]).mean()
        assert abs(score.kl - true) < 5 * score.error, name
        ratios.append(np.log(score.kl / true))
    assert abs(np.mean(ratios)) < 0.2
    assert np.std(ratios) < 0.3


def test_harm_grows_with_the_square_of_the_change(probe, changes):
    predicted = scores(probe, changes, draws=1)
    for name in changes:
        assert predicted[name, "small"].kl == pytest.approx(predicted[name, "smaller"].kl / 0.09, rel=1e-6)


def test_it_leaves_nothing_behind_and_is_repeatable(probe, changes):
    one = {name: changes[name] for name in list(changes)[:1]}
    assert scores(probe, one, draws=1) == scores(probe, one, draws=1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in probe.model.modules())
    assert all(parameter.grad is None for parameter in probe.model.parameters())
