"""The model card says what was measured, the budget kept or missed, and which options only save disk."""

from __future__ import annotations

import doctest

import pytest

from train.compress import card

CERTIFICATE = {
    "num_prompts": 12, "num_tokens": 700, "flips": 0.01, "flips_upper": 0.018, "flips_beyond_noise": 0.002, "fdt_median": 30, "fdt_p10": 3,
    "kl_mean": 0.001, "kl_upper": 0.002, "kl_p99": 0.03, "perplexity": 9.1, "perplexity_base": 9.0, "noise_floor": 0.001, "longest": 64,
    "intervals": {"flips": [0.005, 0.016]},
}  # fmt: skip
PLAN = [
    {"option": "int8", "bytes_before": 200, "bytes_after": 104, "has_kernel": True},
    {"option": "int3", "bytes_before": 200, "bytes_after": 40, "has_kernel": False},
]


def report(passed):
    return {
        "bytes": 5_000,
        "bytes_base": 10_000,
        "budget": {"flips": 0.02},
        "pass": passed,
        "certificate": CERTIFICATE,
        "readers": ["sterna", "transformers"],
    }


@pytest.mark.parametrize(
    ("passed", "said", "told"),
    [
        (True, "It keeps to the budget flips=0.02.", "within flips=0.02"),
        (False, "**It does not keep to** the budget flips=0.02.", "NOT within flips=0.02"),
        (None, "There was no budget", "0.50 of the bytes, SDT 1.00%"),
    ],
)
def test_the_verdict_comes_first(passed, said, told):
    assert said in card.card("tern", report(passed), PLAN)
    assert told in card.headline(report(passed), "compressed")


def test_figures_have_their_intervals_and_options_their_kernels():
    text = card.card("tern", report(True), PLAN)
    assert "| tokens that differ (SDT) | 1.00% | 0.50% to 1.60% |" in text
    assert "| int8 | 1 | 200 | 104 |  |" in text
    assert "Read by sterna and transformers." in text
    assert "| int3 | 1 | 200 | 40 | smaller on disk only" in text


def test_an_agreement_to_the_end_is_a_lower_bound():
    text = card.card(
        "tern", {**report(True), "certificate": {**CERTIFICATE, "fdt_median": 64, "intervals": {"fdt_median": [30, 64]}}}, PLAN
    )
    assert "| tokens that agree first (FDT), median | ≥ 64 | 30 to ≥ 64 |" in text
    assert "| … a tenth agree for no longer | 3 |" in text


def test_the_worked_example():
    assert doctest.testmod(card).failed == 0
