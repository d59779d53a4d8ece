from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.optimize.guard import EVERY, FEWEST, TRIES, Diverged, Guard, spike
from train.recipe import Recipe
from train.state import Record, State

RECIPE = Recipe(steps=200, global_batch=1, micro_batch=1, sequence_length=8, learning_rate=1e-3, num_workers=1)


class Notes:
    """A stepper whose weights are the number of steps that made them."""

    def __init__(self) -> None:
        self.weights, self.kept = 0, -1

    def remember(self) -> None:
        self.kept = self.weights

    def go_back(self) -> None:
        self.weights = self.kept


def lived(losses: list[float], recipe: Recipe = RECIPE) -> tuple[State, Notes]:
    """A run whose windows have these losses, as the loop makes it."""
    notes, state = Notes(), State()
    guard = Guard(notes, recipe, state)
    for window, loss in enumerate(losses):
        record = Record(state.step + 1, loss, 1, 1.0, 1e-3, 1.0, window)
        reason = guard.judge(state, loss)
        notes.weights += 1  # the update, which follows the judgement whatever it was
        state = state.after(record) if reason is None else guard.undo(state, record, reason)
        assert notes.weights == state.step
    return state, notes


@given(st.floats(0.5, 12), st.floats(0, 0.05), st.integers(0, 2**31))
def test_noise_is_no_spike_and_a_leap_is(level: float, noise: float, seed: int):
    import random

    draw = random.Random(seed)
    recent = [level * (1 + draw.uniform(-noise, noise)) for _ in range(64)]
    assert spike(recent, level * (1 + noise), 8.0) is None
    assert spike(recent, level * (1 + 9 * max(1.5 * noise, 0.01)), 8.0) is not None
    assert spike(recent, math.nan, 8.0) == "loss nan"
    assert spike(recent, level / 2, 8.0) is None


def test_a_fall_is_never_a_spike_and_early_losses_are_not_judged():
    assert spike([11.0, 9.0, 7.0], 12.0, 8.0) is None
    assert spike([10.0 - 0.1 * i for i in range(64)], 10.0 - 6.4, 8.0) is None
    assert spike([3.0] * FEWEST, 9.0, 8.0) is not None


def test_the_run_goes_back_to_its_last_good_step_and_past_the_data_since():
    losses = [3.0] * (2 * EVERY + 5) + [7.0] + [3.0] * 4
    state, _ = lived(losses)
    (skip,) = state.skips
    assert (skip.step, skip.first, skip.last, skip.loss) == (2 * EVERY, 2 * EVERY, 2 * EVERY + 5, 7.0)
    assert state.step == 2 * EVERY + 4
    assert [r.window for r in state.records][-4:] == list(range(2 * EVERY + 6, 2 * EVERY + 10))


def test_a_run_that_spikes_again_and_again_is_given_up_in_one_line():
    with pytest.raises(Diverged, match=f"after going back to step 0 {TRIES} times; lower the learning rate"):
        lived([3.0] * 15 + [math.nan] * (TRIES + 1))
    state, _ = lived(([3.0] * (EVERY + 1) + [9.0]) * 6)  # spikes far apart are each forgiven
    assert len(state.skips) == 6


def test_without_a_guard_a_loss_that_is_no_number_ends_the_run():
    import dataclasses

    off = dataclasses.replace(RECIPE, guard=0.0)
    state, notes = lived([3.0] * 15 + [50.0], off)
    assert (state.step, notes.kept) == (16, -1)
    with pytest.raises(Diverged, match="loss nan at step 2; lower the learning rate"):
        lived([3.0, math.nan], off)
