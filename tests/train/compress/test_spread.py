"""Passes on a cluster say what a pass in one process says, also after an actor has died."""

from __future__ import annotations

import numpy as np
import pytest
import ray
import torch

from tests.train.compress.plain_model import Plain
from train.compress.divergence import make_reference
from train.compress.find import probe_of
from train.compress.quantize import linear_layers, load_dense, round_to_nearest
from train.compress.spread import Spread


def test_spread_passes_are_plain_passes(ray_session, tiny_model_dir):
    model = load_dense(tiny_model_dir)
    exact = load_dense(tiny_model_dir, torch.float32)
    rows = np.random.default_rng(3).integers(4, 400, (9, 18)).tolist()
    reference = make_reference(Plain(exact), [row[: 4 + i] for i, row in enumerate(rows)], [row[4 + i :] for i, row in enumerate(rows)])
    name = [name for name in linear_layers(exact) if name != "lm_head"][-1]
    q, scale = round_to_nearest(exact.get_submodule(name).weight, torch.float32)
    plan = {name: torch.round(q.float() / 32) * 32 * scale}
    plain, spread = probe_of(model, reference), Spread(model, reference, 2)
    try:
        for kill in (False, True):
            if kill:
                ray.kill(spread._actors[0], no_restart=False)
            for mine, theirs in zip(spread.traces(plan), plain.traces(plan), strict=True):
                assert mine.kl == pytest.approx(theirs.kl, abs=1e-5)
                assert mine.losses == pytest.approx(theirs.losses, abs=1e-5)
        assert spread.passes == pytest.approx(plain.passes)
    finally:
        spread.close()
