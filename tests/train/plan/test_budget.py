"""What a plan decides: inside budget and memory, better with more of either, and one line when it cannot be."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.plan import budget as budget_module
from train.plan import config as config_module
from train.plan.budget import Data, decide, probe_shapes
from train.plan.config import Budget, PlanConfig
from train.plan.machine import Machine, Sample, Throughput
from train.plan.shapes import Architecture, shape_of_width

TEXT = {"bytes_per_token": 3.5, "zstd_bits_per_byte": 1.5}
DATA = Data(num_sequences=10_000, sequence_length=512, vocab_size=8192, **TEXT, padding_share=0.01)


def sample(width: int, flops_per_second: float) -> Sample:
    shape = shape_of_width(width, vocab_size=8192, max_length=512)
    per_token = shape.train_flops_per_token(512)
    return Sample(
        shape=shape, flops_per_token=per_token, seconds_per_token=per_token / flops_per_second, update_seconds=shape.num_parameters * 2e-9
    )


def machine(*, num_workers: int = 2, memory_bytes: float = 8 * 2**30, precision="float32") -> Machine:
    speed = Throughput((sample(96, 5e10), sample(256, 1e11)))
    return Machine(num_workers=num_workers, memory_bytes=memory_bytes, precision=precision, throughput=speed)


def test_doctests():
    assert doctest.testmod(budget_module).failed == 0
    assert doctest.testmod(config_module).failed == 0


@settings(deadline=None, max_examples=60)
@given(st.floats(60, 1e6), st.integers(1, 16), st.integers(100, 10**7))
def test_a_time_budget_is_kept_and_used(seconds, workers, num_sequences):
    data = replace(DATA, num_sequences=num_sequences)
    best, _ = decide(data, Budget(seconds=seconds), machine(num_workers=workers))
    assert best.seconds.value <= seconds * 1.02
    assert best.seconds.value >= seconds * 0.85 or best.epochs >= budget_module.MAX_EPOCHS * 0.9 or best.recipe.steps < 60
    assert best.recipe.global_batch % (workers * best.recipe.micro_batch) == 0
    assert best.recipe.global_batch <= max(num_sequences, workers)
    assert 1 <= best.recipe.warmup_steps <= best.recipe.steps


@settings(deadline=None, max_examples=60)
@given(st.floats(1e12, 1e21))
def test_a_flops_budget_is_kept(flops):
    data = replace(DATA, num_sequences=10**8)
    best, _ = decide(data, Budget(flops=flops), machine(memory_bytes=2**40))
    assert best.flops <= flops
    assert best.flops >= 0.8 * flops


def test_a_larger_budget_gives_a_lower_loss_and_a_larger_model():
    plans = [decide(DATA, Budget(seconds=60 * minutes), machine())[0] for minutes in (1, 2, 10, 60, 600)]
    losses, sizes = [plan.loss.value for plan in plans], [plan.shape.num_parameters for plan in plans]
    assert losses == sorted(losses, reverse=True)
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_every_architecture_can_be_planned(architecture):
    best, candidates = decide(DATA, Budget(flops=1e15), machine(), architecture=architecture)
    assert {candidate.shape.architecture for candidate in candidates} == {architecture}
    assert best.memory.total <= 8 * 2**30
    probes = probe_shapes(DATA, Budget(flops=1e15), 2, architecture=architecture)
    assert {shape.architecture for shape in probes} == {architecture}


def test_the_best_is_the_best_of_the_candidates():
    best, candidates = decide(DATA, Budget(seconds=600), machine())
    assert best in candidates
    assert all(best.loss.value <= other.loss.value * budget_module.INDIFFERENT for other in candidates)
    assert best not in (candidates[0], candidates[-1]), "the minimum is inside the range that is shown"


def test_the_journeys_two_minutes():
    best, _ = decide(DATA, Budget.parse("minutes=2"), machine())
    assert best.recipe.steps > 100
    assert best.recipe.num_workers == 2
    assert best.recipe.zero_stage == 2
    assert 1e6 < best.shape.num_parameters < 5e6
    assert 3 < best.loss.value < 5.5


def test_memory_decides_micro_batch_then_stage_then_shape():
    roomy, _ = decide(DATA, Budget(seconds=36_000), machine(memory_bytes=64 * 2**30))
    tight, _ = decide(DATA, Budget(seconds=36_000), machine(memory_bytes=1.1 * 2**30))
    assert tight.memory.total <= 1.1 * 2**30
    assert tight.recipe.micro_batch <= roomy.recipe.micro_batch
    assert tight.loss.value >= roomy.loss.value / 1.01


def test_max_parameters_is_kept():
    best, candidates = decide(DATA, Budget(seconds=36_000), machine(), max_parameters=3_000_000)
    assert max(candidate.shape.num_parameters for candidate in candidates) <= 3_000_000
    assert best.shape.num_parameters <= 3_000_000


def test_repeated_text_lowers_the_worth_of_time():
    scarce = replace(DATA, num_sequences=300)
    rich, _ = decide(DATA, Budget(seconds=1800), machine())
    poor, _ = decide(scarce, Budget(seconds=1800), machine())
    assert poor.epochs > rich.epochs
    assert poor.loss.value > rich.loss.value


@pytest.mark.parametrize(
    ("data", "budget", "machine_options", "max_parameters", "message"),
    [
        (DATA, Budget(seconds=10), {}, None, "budget: 0.166667 minutes is too little; minutes="),
        (DATA, Budget(flops=1e9), {}, None, "budget: 1e\\+09 FLOPs is too little; flops="),
        (DATA, Budget(seconds=600), {"memory_bytes": 1e8}, None, "memory_bytes: 0.09 GiB per worker cannot hold the smallest model"),
        (DATA, Budget(seconds=600), {}, 1000, "max_parameters: with a vocabulary of 8192 the smallest model has"),
        (replace(DATA, num_sequences=1), Budget(seconds=600), {}, None, "tokens: 1 sequences are too few"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_clear_line(data, budget, machine_options, max_parameters, message):
    with pytest.raises(ValueError, match=message) as caught:
        decide(data, budget, machine(**machine_options), max_parameters=max_parameters)
    assert "\n" not in str(caught.value)


def test_the_least_budget_that_is_named_suffices():
    with pytest.raises(ValueError, match="minutes=") as caught:
        decide(DATA, Budget(seconds=10), machine())
    minutes = str(caught.value).partition("minutes=")[2].split()[0]
    decide(DATA, Budget.parse(f"minutes={minutes}"), machine())


def test_probes_are_few_small_and_in_order():
    for seconds in (60, 600, 1e6):
        probes = probe_shapes(DATA, Budget(seconds=seconds), 2)
        assert 1 <= len(probes) <= 2
        assert all(shape.num_parameters < 60e6 for shape in probes)
        assert [shape.num_parameters for shape in probes] == sorted({shape.num_parameters for shape in probes})


@pytest.mark.parametrize(
    ("text", "seconds", "flops"),
    [
        ("minutes=2", 120, None),
        ("hours=0.5", 1800, None),
        (" FLOPs = 1e18 ", None, 1e18),
        ("days=1", 86400, None),
        ("seconds=90", 90, None),
    ],
)
def test_budgets_are_understood(text, seconds, flops):
    assert Budget.parse(text) == Budget(seconds=seconds, flops=flops)


@pytest.mark.parametrize(
    "text", ["", "2 hours", "hours=two", "hours=0", "hours=-1", "flops=inf", "flops=nan", "dollars=5", "hours=1,flops=2"]
)
def test_budgets_that_are_none_are_refused_in_one_line(text):
    with pytest.raises(ValueError, match="budget: ") as caught:
        PlanConfig(tokens="t", output="o", budget=text)
    assert "\n" not in str(caught.value)
