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
from train.plan.catalogue import fleet_of, read_catalogue
from train.plan.config import Budget, PlanConfig
from train.plan.machine import Machine, Sample, Throughput
from train.plan.price import Market, Rates, Tariff
from train.plan.rented import rented
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
@given(st.floats(1e12, 1e19))
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
        (DATA, Budget(seconds=10), {}, None, "budget: 10 seconds is too little; minutes="),
        (DATA, Budget(flops=1e9), {}, None, "budget: 1e\\+09 FLOPs is too little; flops="),
        (DATA, Budget(seconds=600), {"memory_bytes": 1e8}, None, "memory_bytes: 0.09 GiB per worker cannot hold the smallest model"),
        (DATA, Budget(seconds=600), {}, 1000, "max_params: 1,000 are too few: with a vocabulary of 8192 the smallest model has"),
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
        ("hour=2", 7200, None),
    ],
)
def test_budgets_are_understood(text, seconds, flops):
    assert Budget.parse(text) == Budget(seconds=seconds, flops=flops)
    assert Budget.parse("dollars=2.5") == Budget(dollars=2.5)


@pytest.mark.parametrize(
    "text",
    ["", "2 hours", "hours=two", "hours=0", "hours=-1", "flops=inf", "flops=nan", "euros=5", "hours=1,flops=2", "dollars=-1", "tokens=1e9"],
)
def test_budgets_that_are_none_are_refused_in_one_line(text):
    with pytest.raises(ValueError, match="budget: ") as caught:
        PlanConfig(tokens="t", output="o", budget=text)
    assert "\n" not in str(caught.value)


WEB = Data(num_sequences=50_000_000, sequence_length=2048, vocab_size=50_000, bytes_per_token=4.2, zstd_bits_per_byte=2.6)
TARIFF = Tariff(on_demand=55.0, spot=22.0, source="a test")


def fleet(text: str = "8xH100") -> Machine:
    return rented(fleet_of(text, read_catalogue()), vocab_size=WEB.vocab_size, sequence_length=WEB.sequence_length)


def test_a_rented_fleet_is_planned_for():
    best, _ = decide(WEB, Budget(seconds=48 * 3600), fleet(), market=Market(tariff=TARIFF))
    assert 5e8 < best.shape.num_parameters < 1e10
    assert best.memory.total <= 80e9
    assert best.recipe.num_workers == 8
    assert best.on_demand.dollars.value == pytest.approx(48 * 55, rel=0.03)
    assert best.spot.dollars.value < best.on_demand.dollars.value
    assert best.spot.hours.value > best.on_demand.hours.value
    assert best.recipe.checkpoint_every * best.step_s == pytest.approx(best.interval_s, rel=0.5)


@settings(max_examples=15)
@given(st.sampled_from(["on-demand", "spot"]), st.sampled_from(["8xH100", "64xH100"]), st.floats(100, 1e5))
def test_dollars_are_kept_and_used(kind, machines, dollars):
    market = Market(kind=kind, tariff=TARIFF)
    best, _ = decide(WEB, Budget(dollars=dollars), fleet(machines), market=market)
    assert 0.92 * dollars <= best.bill(kind).dollars.value <= dollars * (1 + 1e-9)


def test_spot_buys_more_training_for_the_same_money():
    plans = {kind: decide(WEB, Budget(dollars=2000), fleet(), market=Market(kind=kind, tariff=TARIFF))[0] for kind in ("on-demand", "spot")}
    assert plans["spot"].flops > 1.8 * plans["on-demand"].flops
    assert plans["spot"].interval_s < plans["on-demand"].interval_s, "where failures come unannounced more often, it saves more often"
    wild = Market(kind="spot", tariff=TARIFF, rates=Rates(preemptions_per_hour=5.0))
    assert decide(WEB, Budget(dollars=2000), fleet(), market=wild)[0].flops < 0.9 * plans["spot"].flops


@pytest.mark.parametrize(
    ("budget", "machine_text", "message"),
    [
        (Budget(dollars=5), None, "nobody has said what this machine costs; give --price-per-hour"),
        (Budget(dollars=0.01), "8xH100", r"0\.01 dollars is too little; dollars="),
        (Budget(seconds=1e12), "8xH100", "are 31,686 years; at most hours=87660"),
        (Budget(flops=1e28), "8xH100", "would take 8 x H100 .* years; give more machines, or at most flops="),
        (Budget(flops=1e5), "8xH100", r"is too little; flops="),
        (Budget(seconds=30), "8xH100", "start-up alone takes"),
    ],
)  # fmt: skip
def test_absurd_budgets_are_one_clear_line(budget, machine_text, message):
    here, market = (fleet(machine_text), Market(tariff=TARIFF)) if machine_text else (machine(), Market())
    with pytest.raises(ValueError, match=message) as caught:
        decide(WEB, budget, here, market=market)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", ["dollars=0.01", "minutes=1"])
@pytest.mark.parametrize("preemptions", [0.05, 20.0])
def test_the_least_that_is_named_suffices_whatever_the_market_takes(limit, preemptions):
    market = Market(kind="spot", tariff=TARIFF, rates=Rates(preemptions_per_hour=preemptions))
    with pytest.raises(ValueError, match="is too little") as caught:
        decide(WEB, Budget.parse(limit), fleet(), market=market)
    named = limit.partition("=")[0] + "=" + str(caught.value).partition(limit.partition("=")[0] + "=")[2].split()[0]
    decide(WEB, Budget.parse(named), fleet(), market=market)
