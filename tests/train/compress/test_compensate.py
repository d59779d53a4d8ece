"""The surgeon's update: exact where one column is fixed, and untouched where nothing changes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from train.compress.calibrate import Moments
from train.compress.compensate import compensate


def moments(seed: int, columns: int) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return Moments(x.T @ x / len(x), len(x))


@given(st.integers(0, 2**31), st.integers(1, 140))
def test_nothing_replaced_is_nothing_changed(seed, columns):
    weight = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(compensate(weight, moments(seed, columns).inverse_root, lambda j, all_: all_[j].clone()), weight)


@given(st.integers(0, 2**31), st.integers(2, 140), st.data())
def test_the_later_columns_answer_as_least_squares_would(seed, columns, data):
    """Zeroing column j: the columns after it become the minimiser of the damped error, those before it stay."""
    j = data.draw(st.integers(0, columns - 2))
    known = moments(seed, columns)
    weight = torch.randn(2, columns, generator=torch.Generator().manual_seed(seed))
    got = compensate(weight, known.inverse_root, lambda i, all_: torch.zeros(2) if i == j else all_[i].clone())
    h = known.damped
    best = torch.linalg.solve(h[j + 1 :, j + 1 :], h[j + 1 :, j : j + 1] @ weight[:, j : j + 1].double().T).T  # Δ of the rest
    expected = weight.double()
    expected[:, j], expected[:, j + 1 :] = 0, expected[:, j + 1 :] + best
    torch.testing.assert_close(got.double(), expected, rtol=2e-2, atol=2e-2)
