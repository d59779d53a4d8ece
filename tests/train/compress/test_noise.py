"""The noise floor: hazards of decodings, and the floors of a real model through the engine."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from train.compress import noise
from train.compress.divergence import make_reference
from train.compress.original import greedy


@given(st.integers(0, 2**31), st.floats(0.01, 0.5))
def test_the_hazard_is_the_flip_rate_however_long_texts_stay_apart(seed, rate):
    rng = np.random.default_rng(seed)
    flips = [rng.random(64) < rate for _ in range(400)]
    apart = [np.logical_or.accumulate(each) for each in flips]  # once parted, every later token differs
    assert noise.hazard(apart) == noise.hazard(flips) == pytest.approx(rate, rel=0.35)


def test_nothing_apart_is_no_hazard():
    assert noise.hazard([np.zeros(5, bool)] * 3) == 0
    assert noise.hazard([]) == noise.share([]) == 0


def test_the_floors_of_a_model(tiny_model_dir):
    one = EngineConfig(num_threads=1)
    exact = Engine.load(tiny_model_dir, EngineConfig(num_threads=1, dtype="float32"))
    prompts = np.random.default_rng(0).integers(4, 400, (20, 6)).tolist()
    reference = make_reference(exact, prompts, greedy(exact, prompts, 12))
    passes = []
    found, noisy = noise.measure_noise(tiny_model_dir, one, reference, done=lambda: passes.append(1))
    assert found.floor == max(found.flips, found.batch_flips, found.decode_flips) < 0.2
    assert found.flips == noise.share(noise.flips_by_prompt(reference, noisy))
    assert 0 < found.kl_mean < 0.01
    assert 0 < found.margin < 1
    assert len(passes) > len(prompts)
