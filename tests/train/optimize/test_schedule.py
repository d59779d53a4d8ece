from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from train.optimize.schedule import learning_rate_at
from train.recipe import Recipe

RECIPE = {"global_batch": 8, "micro_batch": 4, "sequence_length": 32, "learning_rate": 1e-3, "num_workers": 1}


@given(steps=st.integers(1, 300), warmup=st.integers(0, 50), schedule=st.sampled_from(["cosine", "wsd", "constant"]))
def test_the_rate_climbs_then_falls_and_stays_positive(steps: int, warmup: int, schedule: str):
    warmup = min(warmup, steps)
    recipe = Recipe(**RECIPE, steps=steps, warmup_steps=warmup, schedule=schedule)
    rates = [learning_rate_at(recipe, step) for step in range(steps)]
    top = warmup
    assert all(0 < rate <= recipe.learning_rate * (1 + 1e-12) for rate in rates)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@given(steps=st.integers(10, 300), longer=st.integers(0, 300), share=st.floats(0.05, 0.5))
def test_a_wsd_run_can_be_prolonged_from_any_step_before_its_fall(steps: int, longer: int, share: float):
    """Up to the fall the rates do not depend on where the run ends."""
    short, long = (Recipe(**RECIPE, steps=n, schedule="wsd", warmup_steps=3, decay_share=share) for n in (steps, steps + longer))
    before = steps - max(1, round(steps * share))
    assert [learning_rate_at(short, i) for i in range(before)] == [learning_rate_at(long, i) for i in range(before)]
    assert learning_rate_at(short, steps - 1) < short.learning_rate
