"""Masks: 2:4 exactly, shares exactly, and what each method owes its paper."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train.compress.test_gptq import drawn
from train.compress.calibrate import Moments
from train.compress.options import kept_per_row, option
from train.compress.prune import pruned

METHODS = ("magnitude", "wanda", "sparsegpt")


@given(st.integers(0, 2**31), st.integers(1, 7), st.integers(4, 150), st.sampled_from(METHODS))
def test_of_every_four_columns_two_stay(seed, rows, columns, method):
    weight, moments = drawn(seed, rows, columns, 40)
    values, mask = pruned(weight, option(f"2:4-{method}"), moments)
    whole = columns // 4 * 4
    assert (mask[:, :whole].view(rows, -1, 4).sum(2) == 2).all()
    assert (mask[:, whole:].sum(1) == min(2, columns - whole)).all()
    assert (values[~mask] == 0).all()


@given(st.integers(0, 2**31), st.integers(1, 7), st.integers(2, 300), st.integers(1, 99), st.sampled_from(METHODS))
def test_exactly_the_share_is_kept(seed, rows, columns, percent, method):
    weight, moments = drawn(seed, rows, columns, 40)
    chosen = option(f"sparse{percent}-{method}")
    values, mask = pruned(weight, chosen, moments)
    assert mask.sum() == rows * kept_per_row(chosen, columns)
    assert (values[~mask] == 0).all()
    if method == "wanda":
        assert (mask.sum(1) == kept_per_row(chosen, columns)).all()
    if method != "sparsegpt":
        assert torch.equal(values[mask], weight[mask])


@pytest.mark.parametrize("form", ["sparse50", "2:4"])
def test_the_better_informed_method_errs_less(form):
    """Some inputs are ten times as large as others (wanda sees that), and they depend on each other (sparsegpt uses it)."""
    weight, alike = drawn(3, 32, 128, 200)
    size = torch.logspace(-0.5, 0.5, 128)[torch.randperm(128, generator=torch.Generator().manual_seed(0))]
    moments = Moments(alike.xx * size * size[:, None], 200)
    errors = [moments.errors(pruned(weight, option(f"{form}-{method}"), moments)[0] - weight).sum() for method in METHODS]
    assert errors[2] < 0.95 * errors[1] < 0.9 * errors[0]


def test_wanda_weighs_columns_by_their_inputs():
    moments = Moments(torch.diag(torch.tensor([100.0, 1.0, 1.0, 1.0])), 1)
    values, _ = pruned(torch.tensor([[0.5, 1.0, 2.0, 3.0]]), option("sparse50-wanda"), moments)
    assert values.tolist() == [[0.5, 0.0, 0.0, 3.0]]
