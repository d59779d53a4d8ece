from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from train.elastic.deadline import choose

seconds = st.floats(0.001, 1000.0)


@given(seconds, seconds, seconds, seconds)
def test_whoever_saves_with_less_time_saves_with_less_still(left: float, less: float, step: float, save: float):
    if choose(left, step, save).save:
        assert choose(min(left, less), step, save).save


@given(seconds, seconds, seconds)
def test_one_more_step_always_leaves_time_for_a_checkpoint_that_takes_as_long_as_the_longest(left: float, step: float, save: float):
    if not choose(left, step, save).save:
        assert left - step > save


@given(seconds, seconds)
def test_without_a_figure_it_saves_at_once(left: float, step: float):
    assert choose(left, step, None).save
    assert choose(0.0, step, 0.1).save


def test_a_run_of_steps_ends_with_a_checkpoint_in_time():
    left, steps = 10.0, 0
    while not choose(left, 0.5, 1.0).save:
        left, steps = left - 0.5, steps + 1
    assert steps > 5
    assert left - 1.0 > 0
