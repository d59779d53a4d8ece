from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.recipe import Recipe, at_least

RECIPE = {"steps": 10, "sequence_length": 8, "learning_rate": 1e-3}


@given(workers=st.integers(1, 8), micro=st.integers(1, 8), rounds=st.integers(1, 8))
def test_micro_batches_make_up_the_global_batch(workers: int, micro: int, rounds: int):
    recipe = Recipe(**RECIPE, num_workers=workers, micro_batch=micro, global_batch=workers * micro * rounds)
    assert recipe.micro_steps == rounds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "muon"}, "muon needs whole matrices on every worker; set zero_stage to 0"),
        ({"offload": "optimizer", "zero_stage": 0}, "offload: optimizer needs zero_stage 1 or more, it is 0"),
        ({"offload": "parameters"}, "offload: parameters needs zero_stage 3 or more, it is 2"),
        ({"guard": -1.0}, "guard: is -1.0; must not be negative"),
        ({"decay_share": 0.0}, "decay_share: is 0.0"),
        ({"optimizer": "muon", "num_workers": 1, "offload": "optimizer"}, "offload: optimizer is for adamw"),
        ({"learning_rate": float("nan")}, "learning_rate: is nan; must be a finite number"),
        ({"z_loss": float("inf")}, "z_loss: is inf"),
        ({"warmup_steps": 11}, "warmup_steps: is 11, of 10 steps"),
        ({"seed": -1}, "seed: is -1"),
        ({"seed": 1 << 63}, "seed: is 9223372036854775808"),
        ({"tensor": 2, "num_workers": 3, "zero_stage": 0}, "tensor: 3 workers do not make groups of 2; make num_workers a multiple of 2"),
        ({"num_workers": 4}, "make it a multiple of 8, or micro_batch smaller"),
    ],
)
def test_what_cannot_be_done_is_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Recipe(**{**RECIPE, "global_batch": 4, "micro_batch": 2} | change)


def test_a_setting_has_its_least_value():
    at_least(3, 3, "steps")
    with pytest.raises(ValueError, match="steps: is 2; must be at least 3"):
        at_least(2, 3, "steps")
