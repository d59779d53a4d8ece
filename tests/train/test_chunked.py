"""Sums over positions, chunk by chunk, against autograd of the whole."""

from __future__ import annotations

import pytest
import torch

from train.chunked import chunked_sum, wide


def squares(part, logits, wanted):
    """Σ z² of each position, and its gradient."""
    return logits.square().sum(1), 2 * logits if wanted else None


@pytest.mark.parametrize("size", [1, 4, 7, 100])
@pytest.mark.parametrize("trained", ["hidden", "weight", "both"])
def test_sum_and_gradients_are_those_of_the_whole(size, trained):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 5, generator=generator, dtype=torch.float64) for rows in (7, 11))
    hidden.requires_grad_(trained != "weight"), weight.requires_grad_(trained != "hidden")
    leaves = [leaf for leaf in (hidden, weight) if leaf.requires_grad]
    found, expected = chunked_sum(hidden, weight, size, squares), (hidden @ weight.T).square().sum()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * found, leaves), torch.autograd.grad(3 * expected, leaves))


def test_no_gradient_is_asked_for_where_none_is_wanted():
    asked = []

    def judge(part, logits, wanted):
        asked.append((part.start, wanted))
        return logits.sum(1), None

    assert float(chunked_sum(torch.ones(5, 2), torch.ones(3, 2), 2, judge)) == 30
    assert asked == [(0, False), (2, False), (4, False)]


def test_sums_are_wide():
    assert chunked_sum(torch.ones(2, 2).bfloat16(), torch.ones(3, 2), 2, squares).dtype == torch.float32
    assert [wide(torch.ones(1, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)] == [torch.float32, torch.float64]
