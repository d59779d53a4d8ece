"""The certificate: bounds that hold, noise that is ignored, intervals that contain their figure."""

from __future__ import annotations

import numpy as np
import pytest

from train.compress.certify import certify, flips_upper, judge_budget, kl_upper, least_flips_upper
from train.compress.divergence import Reference, Trace
from train.compress.noise import Noise, flips_by_prompt


def trace_of(completion, flipped=(), *, margin=1.0, kl=0.01):
    likeliest = np.array(completion)
    likeliest[list(flipped)] += 1
    size = len(completion)
    return Trace(likeliest=likeliest, losses=np.full(size, 0.5), margins=np.full(size, float(margin)), kl=np.full(size, kl))


def reference_of(completions, margin=1.0):
    traces = tuple(trace_of(completion, margin=margin, kl=0.0) for completion in completions)
    nothing = tuple(np.zeros((len(c), 0)) for c in completions)
    return Reference(tuple((1,) for _ in completions), tuple(map(tuple, completions)), traces, nothing, nothing)


def noise_of(**given):
    return Noise(**{"flips": 0.0, "batch_flips": 0.0, "decode_flips": 0.0, "kl_mean": 0.0, "margin": 0.0, "arithmetic": "none", **given})


TEXTS = ([np.full(10, 1.0)] * 4, [np.full(10, 1.1)] * 4)


def test_the_figures_of_a_small_case():
    completions = [[5] * 10 for _ in range(4)]
    reference = reference_of(completions)
    noise = noise_of()
    traces = [trace_of(completions[0], [3, 7]), *(trace_of(c) for c in completions[1:])]
    found = certify(reference, traces, noise, TEXTS, seed=0)
    assert found["flips"] == 2 / 40
    assert found["fdt_p10"] == 3
    assert found["fdt_median"] == found["longest"] == 10
    assert found["diverged"] == 1
    assert found["kl_mean"] == pytest.approx(0.01)
    assert found["perplexity"] == pytest.approx(np.exp(1.1))
    assert found["perplexity_base"] == pytest.approx(np.exp(1.0))
    assert found["completion_perplexity"] == pytest.approx(np.exp(0.5))
    assert found["flips"] < found["flips_upper"] < 0.3
    for name, (low, high) in found["intervals"].items():
        assert low <= found[name] + 1e-12, name
        assert found[name] <= high + 1e-12, name


def test_flips_within_the_noise_are_ignored_by_the_margin_aware_share():
    completions = [[5] * 10]
    reference = reference_of(completions, margin=0.01)
    noise = noise_of(flips=0.1, batch_flips=0.2, margin=0.04)
    found = certify(reference, [trace_of(completions[0], [4])], noise, TEXTS, seed=0)
    assert found["flips"] == 0.1
    assert found["flips_beyond_noise"] == 0
    assert found["noise_floor"] == 0.2, "the largest of the three"


def test_the_upper_bound_holds_on_fresh_prompts():
    rng = np.random.default_rng(0)
    truth, held = 0.02, 0
    for _ in range(200):
        rates = rng.beta(0.5, 0.5 * (1 - truth) / truth, 60)  # prompts differ a lot
        flips = [rng.random(32) < rate for rate in rates]
        held += flips_upper(flips, rng) >= truth
    assert held >= 0.9 * 200


@pytest.mark.parametrize("share", [0.1, 0.02])
def test_the_upper_bound_holds_of_enough_prompts_where_few_of_them_differ_much(share):
    """`share` of the prompts flip three tokens of ten, the others none: with eight prompts there is often none of them to be seen."""
    rng, held = np.random.default_rng(0), {128: 0, 8: 0}
    for size in held:
        for _ in range(120):
            flips = [rng.random(64) < 0.3 * (rng.random() < share) for _ in range(size)]
            held[size] += flips_upper(flips, rng) >= 0.3 * share
    assert held[128] >= 0.88 * 120
    assert held[8] < 0.7 * 120, "what ENOUGH_PROMPTS warns of"


def test_flips_by_prompt_compares_with_the_completion():
    reference = reference_of([[1, 2], [3]])
    flips = flips_by_prompt(reference, [trace_of([1, 2], [1]), trace_of([3])])
    assert [each.tolist() for each in flips] == [[False, True], [False]]


def test_the_upper_bound_of_kl_holds_on_fresh_prompts():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        means = rng.gamma(0.5, 0.02, 60)  # prompts differ a lot; 0.01 on average
        held += kl_upper([rng.gamma(1.0, mean, 32) for mean in means], rng) >= 0.01
    assert held >= 0.9 * 200


def test_tokens_without_a_flip_show_the_rule_of_three():
    flips = [np.zeros(64, bool)] * 50
    assert flips_upper(flips, np.random.default_rng(0)) == pytest.approx(least_flips_upper(3200))


def test_a_budget_is_kept_by_every_bound():
    certificate = {"flips": 0.001, "flips_upper": 0.02, "kl_mean": 0.001, "kl_upper": 0.003}
    assert judge_budget(certificate, {"flips": 0.02})
    assert not judge_budget(certificate, {"flips": 0.019})
    assert not judge_budget(certificate, {"flips": 0.02, "kl": 0.002})
