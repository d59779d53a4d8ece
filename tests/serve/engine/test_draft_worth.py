"""Whether drafting pays: found out by trying, whatever the speeds, the noise and the number of sequences."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from serve.engine.draft_worth import Worth


def run(worth: Worth, num_sequences: int, gain: float, num_steps: int, noise: float = 0.0, seed: int = 0) -> float:
    """The share of steps with drafts, where drafting makes the engine `gain` times as fast."""
    rng = random.Random(seed)
    num_awake = 0
    for _ in range(num_steps):
        awake = worth.awake(num_sequences)
        num_awake += awake
        seconds = 0.002 * rng.lognormvariate(0.0, noise) / (gain if awake else 1.0)
        worth.observe(num_sequences, num_sequences, seconds)
    return num_awake / num_steps


@given(st.integers(1, 64), st.floats(0.3, 0.97), st.integers(0, 9))
def test_drafts_that_cost_more_than_they_give_rest(num_sequences, gain, seed):
    worth = Worth()
    run(worth, num_sequences, gain, 3000, noise=0.05, seed=seed)
    assert run(worth, num_sequences, gain, 3000, noise=0.05, seed=seed + 10) < 0.1


@given(st.integers(1, 64), st.floats(1.05, 5.0), st.integers(0, 9))
def test_drafts_that_pay_are_made(num_sequences, gain, seed):
    worth = Worth()
    run(worth, num_sequences, gain, 3000, noise=0.05, seed=seed)
    assert run(worth, num_sequences, gain, 3000, noise=0.05, seed=seed + 10) > 0.9


def test_what_changes_is_noticed():
    worth = Worth()
    run(worth, 4, 0.8, 5000)
    run(worth, 4, 2.0, 3000)
    assert run(worth, 4, 2.0, 1000) > 0.95
    run(worth, 4, 0.8, 3000)
    assert run(worth, 4, 0.8, 1000) < 0.05


def test_a_full_batch_says_nothing_of_a_lone_request():
    worth = Worth()
    run(worth, 16, 0.5, 3000)
    assert worth.awake(1)


def test_the_first_step_of_a_trial_does_not_count():
    """It catches up with what the drafters missed, which is no cost of drafting from then on."""
    worth, was = Worth(), True
    num_awake = 0
    for i in range(4000):
        awake = worth.awake(8)
        num_awake += awake and i >= 2000
        worth.observe(8, 8, 0.1 if awake and not was else 0.001 if awake else 0.002)
        was = awake
    assert num_awake > 1900


def test_pieces_of_prompts_say_nothing():
    worth = Worth()
    for _ in range(100):
        worth.observe(1, num_tokens=0, seconds=0.001)
    assert worth.awake(1)
    assert run(worth, 1, 1.5, 3000) > 0.9


@given(st.floats(0.4, 0.9), st.integers(0, 9))
def test_where_drafts_lose_trying_them_costs_two_percent_at_most(gain, seed):
    """Rested, an engine with drafts takes hardly longer than one without, however dear a trial is."""
    worth = Worth()
    run(worth, 4, gain, 3000, noise=0.05, seed=seed)
    drafting = run(worth, 4, gain, 3000, noise=0.05, seed=seed + 10)
    assert drafting * (1 / gain - 1) < 0.02
