"""Divergent Token Metrics: definitions, the theorem about teacher forcing, survival, KL."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import train.compress.certify
import train.compress.divergence
import train.compress.quantize
from tests.train.compress.plain_model import Plain
from train.compress.divergence import divergent, first_divergent, judge, make_reference, survival, survival_quantile, text_losses
from train.compress.quantize import linear_layers, load_dense, round_to_nearest


@pytest.fixture(scope="module")
def models(tiny_model_dir):
    """The tiny model in float64, and the same with its linear layers rounded to fewer levels."""
    base, rough = load_dense(tiny_model_dir, torch.float64), load_dense(tiny_model_dir, torch.float64)
    for layer in linear_layers(rough).values():
        q, scale = round_to_nearest(layer.weight, torch.float64)
        layer.weight.data = torch.round(q.double() / 4) * 4 * scale
    return Plain(base), Plain(rough)


def prompts_of(num, seed=0):
    return np.random.default_rng(seed).integers(4, 400, (num, 6)).tolist()


@pytest.fixture(scope="module")
def reference(models):
    prompts = prompts_of(24)
    return make_reference(models[0], prompts, [models[0].greedy(prompt, 16) for prompt in prompts])


@pytest.mark.parametrize("module", [train.compress.divergence, train.compress.certify, train.compress.quantize])
def test_the_worked_examples(module):
    assert doctest.testmod(module).failed == 0


def test_teacher_forced_fdt_is_the_free_running_fdt(models, reference):
    seen = set()
    for prompt, completion, trace in zip(reference.prompts, reference.completions, judge(models[1], reference), strict=True):
        free = models[1].greedy(prompt, len(completion))
        forced = first_divergent(divergent(completion, trace.likeliest))
        assert forced == first_divergent(divergent(completion, free))
        seen.add(forced)
    assert len(seen) > 3, "the example is to diverge at several places"


def test_a_model_does_not_diverge_from_itself(models, reference):
    for trace in judge(models[0], reference):
        assert trace.kl.max() == 0
    for completion, trace in zip(reference.completions, reference.traces, strict=True):
        assert first_divergent(divergent(completion, trace.likeliest)) == (len(completion), True)
        assert (trace.margins >= 0).all()


def test_kl_is_the_full_kl_where_all_tokens_are_kept_and_a_lower_bound_of_it_else(models, reference):
    prompt, completion = reference.prompts[0], reference.completions[0]
    p, q = (torch.log_softmax(m.logits([*prompt, *completion])[len(prompt) - 1 : -1], dim=1) for m in models)
    full = (p.exp() * (p - q)).sum(1).numpy()
    assert judge(models[1], reference)[0].kl == pytest.approx(full, abs=1e-9)
    few = make_reference(models[0], reference.prompts[:1], reference.completions[:1], top=20)
    kl = judge(models[1], few)[0].kl
    assert (kl <= full + 1e-12).all()
    assert kl.mean() > 0.2 * full.mean()


def test_losses_are_those_of_the_text(models, reference):
    prompt, completion = reference.prompts[0], reference.completions[0]
    losses = text_losses(models[0], [*prompt, *completion])
    assert len(losses) == len(prompt) + len(completion) - 1
    assert losses[len(prompt) - 1 :] == pytest.approx(reference.traces[0].losses)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=20))
@settings(max_examples=60)
def test_first_divergent_counts_the_agreeing_tokens(rows):
    for row in rows:
        fdt, censored = first_divergent(np.array(row))
        assert not any(row[:fdt])
        assert censored == (fdt == len(row))
        assert censored or row[fdt]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.floats(0.05, 0.95))
@settings(max_examples=60)
def test_survival_without_early_ends_is_the_plain_share(fdts, share):
    length = 12
    observed = [(fdt, fdt == length) for fdt in fdts]
    alive = survival(observed)
    for t, value in enumerate(alive):
        assert value == pytest.approx(sum(fdt > t for fdt in fdts) / len(fdts))
    quantile = survival_quantile(observed, share)
    assert sum(fdt <= quantile for fdt in fdts) / len(fdts) >= share - 1e-9 or quantile == max(fdts)
