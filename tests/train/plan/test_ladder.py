"""A ladder: a grid that can tell the law's terms apart, within its budget, with no text seen twice."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.plan.test_budget import DATA, sample
from train.plan.batch import batch_tokens
from train.plan.config import Budget, SweepConfig
from train.plan.ladder import FACTORS, MICRO_TOKENS, held_out_sequences, ladder, seconds_of, verifier
from train.plan.machine import Throughput
from train.plan.shapes import Architecture

SPEED = Throughput((sample(96, 2e10), sample(256, 4e10)))


def made(budget, *, data=DATA, slots=2, sizes=4):
    return ladder(data, Budget.parse(budget), SPEED, slots=slots, sizes=sizes, precision="float32")


@settings(max_examples=25)
@given(st.floats(8, 600), st.integers(1, 16), st.integers(2, 5))
def test_a_time_budget_is_kept_and_used(minutes, slots, sizes):
    rungs = made(f"minutes={minutes}", slots=slots, sizes=sizes)
    seconds = seconds_of(rungs, SPEED, slots) + 20
    assert seconds <= minutes * 60 * 1.05
    fresh = (DATA.num_sequences - held_out_sequences(DATA)) * DATA.sequence_length
    assert max(rung.positions for rung in rungs) <= fresh * 1.01
    assert [rung.flops for rung in rungs] == sorted((rung.flops for rung in rungs), reverse=True)
    assert len(rungs) == sizes * len(FACTORS) == len({rung.name for rung in rungs})


def test_every_size_is_trained_on_every_amount():
    rungs = made("minutes=12")
    sizes = {rung.shape.num_parameters for rung in rungs}
    assert len(sizes) == 4
    for size in sizes:
        amounts = sorted(rung.positions for rung in rungs if rung.shape.num_parameters == size)
        assert [amount / amounts[-1] for amount in amounts] == pytest.approx([0.25, 0.5, 1.0], rel=0.05)
    for rung in rungs:
        assert rung.recipe.steps >= 60
        assert rung.recipe.num_workers == 1


@pytest.mark.parametrize("minutes", [12, 90, 1000])
def test_batches_are_what_the_compute_asks_for_in_equal_passes(minutes):
    for rung in made(f"minutes={minutes}", data=replace(DATA, num_sequences=10**7)):
        recipe, length = rung.recipe, DATA.sequence_length
        wanted = batch_tokens(rung.flops, rung.positions) / length
        assert recipe.micro_batch * length <= MICRO_TOKENS
        assert abs(recipe.global_batch - wanted) <= 0.5 + recipe.micro_steps / 2 + 0.02 * wanted


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_every_architecture_has_a_ladder(architecture):
    rungs = ladder(DATA, Budget(flops=3e13), SPEED, slots=2, sizes=3, precision="float32", architecture=architecture)
    assert {rung.shape.architecture for rung in rungs} == {architecture}
    assert verifier(rungs, DATA).shape.architecture == architecture


def test_a_flops_budget_is_the_sum():
    assert sum(rung.flops for rung in made("flops=3e13")) == pytest.approx(3e13, rel=0.05)


def test_more_time_gives_a_larger_ladder():
    plenty = replace(DATA, num_sequences=10**7)
    sizes = [max(rung.shape.num_parameters for rung in made(f"minutes={minutes}", data=plenty)) for minutes in (10, 100, 10_000)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


def test_the_verifier_is_four_times_the_largest_on_its_tokens():
    rungs = made("minutes=12")
    largest = max(rungs, key=lambda rung: (rung.shape.num_parameters, rung.positions))
    found = verifier(rungs, DATA)
    assert found.shape.num_parameters == pytest.approx(4 * largest.shape.num_parameters, rel=0.15)
    assert found.positions == pytest.approx(largest.positions, rel=0.02)


@given(st.sampled_from([1024, 4096, 8192, 32_768]), st.sampled_from([1e14, 3e14, 1e15, 1e16]))
@settings(max_examples=12, deadline=None)
def test_the_verifiers_heads_share_its_width(vocabulary, flops):
    """Or transformers refuses the shape, after all runs of the ladder."""
    plenty = replace(DATA, num_sequences=10**7, vocab_size=vocabulary)
    shape = verifier(ladder(plenty, Budget(flops=flops), SPEED, slots=2, sizes=3, precision="float32"), plenty).shape
    assert shape.hidden_size % shape.num_heads == 0


@pytest.mark.parametrize(
    ("budget", "data", "said"),
    [("seconds=25", DATA, "is too little for a ladder of 4 sizes; minutes="), ("flops=1e8", DATA, "is too little .*; flops="),
     ("minutes=10", replace(DATA, num_sequences=40), "tokens: 20,275 are too few for a ladder of 4 sizes .*; some .* are needed")],
)  # fmt: skip
def test_too_little_is_one_line_that_says_how_much_is_enough(budget, data, said):
    with pytest.raises(ValueError, match=said) as caught:
        made(budget, data=data)
    enough = str(caught.value).rpartition("; ")[2].split()[0]
    if "=" in enough:
        assert made(enough)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": "dollars=5"}, "a sweep is given time or arithmetic"),
        ({"sizes": 1}, "must be 2 to 8"),
        ({"resamples": 3}, "20 to 100000"),
    ],
)
def test_settings_that_cannot_be(changes, said):
    with pytest.raises(ValueError, match=said):
        SweepConfig(**({"tokens": "t", "output": "o"} | changes))
