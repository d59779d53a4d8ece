from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.optimize.muon import Muon, orthogonal


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(2, 40), columns=st.integers(2, 40), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_singular_values_come_near_one_and_singular_vectors_stay(rows: int, columns: int, scale: float, seed: int):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    matrix = left @ torch.diag(values.clamp(min=0.3 * values.max())) @ right  # Newton-Schulz lifts tiny values only part of the way
    found = orthogonal(matrix * scale)
    inner = left.T @ found @ right.T
    assert float(inner.diagonal().min()) > 0.6
    assert float(inner.diagonal().max()) < 1.3
    assert float((inner - torch.diag(inner.diagonal())).abs().max()) < 1e-9


def test_the_steps_are_torchs_own_up_to_its_bfloat16():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(12, 20)) for _ in range(2))
    mine = Muon([ours], lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        ours.grad = torch.randn(12, 20)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    moved, expected = ours.detach() - 1, theirs.detach() - 1
    assert float((moved - expected).norm() / expected.norm()) < 0.02


def test_experts_are_so_many_matrices():
    torch.manual_seed(0)
    experts = torch.randn(3, 6, 4)
    torch.testing.assert_close(orthogonal(experts), torch.stack([orthogonal(expert) for expert in experts]))


def test_a_vector_is_not_its_business():
    with pytest.raises(AssertionError, match="not a matrix"):
        Muon([torch.nn.Parameter(torch.ones(4, 1))])
