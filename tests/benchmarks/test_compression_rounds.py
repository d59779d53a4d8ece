"""Sparsity in rounds: how a round's target is shared out."""

from __future__ import annotations

import torch

from benchmarks.compression_rounds import rising
from train.compress.candidates import degraded
from train.compress.options import option

SPARSITIES = ("sparse25-magnitude", "sparse50-magnitude", "sparse75-magnitude")


def test_a_sparser_matrix_is_never_taken_for_a_better_one():
    variants = {("a", each): degraded(torch.eye(8), option(each), None) for each in SPARSITIES}
    harms = {("a", each): harm for each, harm in zip(SPARSITIES, (0.2, 0.1, 0.4), strict=True)}
    found = rising(harms, variants)
    assert found["a", SPARSITIES[0]] == 0.2 < found["a", SPARSITIES[1]] < 0.201
    assert found["a", SPARSITIES[2]] == 0.4
    flat = rising(dict.fromkeys(harms, 0.0), variants)
    assert sorted(flat, key=flat.__getitem__) == [("a", each) for each in SPARSITIES]
