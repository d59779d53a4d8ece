"""What a step takes: rates interpolated between what was measured, and terms that grow as they must."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from train.plan.catalogue import fleet_of, read_catalogue
from train.plan.machine import Machine, Sample, Throughput, checkpoint_seconds, pause_seconds, start_seconds, step_seconds
from train.plan.rented import rented
from train.plan.shapes import shape_of_width
from train.recipe import Recipe

SMALL, LARGE = (shape_of_width(width, vocab_size=8192, max_length=512) for width in (96, 256))
RECIPE = Recipe(steps=10, global_batch=16, micro_batch=4, sequence_length=512, learning_rate=1e-3)


def sample(shape, flops_per_second: float) -> Sample:
    per_token = shape.train_flops_per_token(512)
    return Sample(
        shape=shape, flops_per_token=per_token, seconds_per_token=per_token / flops_per_second, update_seconds=shape.num_parameters * 2e-9
    )


SPEED = Throughput((sample(SMALL, 5e10), sample(LARGE, 1e11)))


def machine(num_workers: int = 2, precision="float32") -> Machine:
    return Machine(num_workers=num_workers, memory_bytes=8 * 2**30, precision=precision, throughput=SPEED)


def test_throughput_is_interpolated_and_held_at_the_ends():
    assert SPEED.flops_per_second(1.0) == pytest.approx(5e10)
    assert SPEED.flops_per_second(1e15) == pytest.approx(1e11)
    middle = math.sqrt(SPEED.samples[0].flops_per_token * SPEED.samples[1].flops_per_token)
    assert SPEED.flops_per_second(middle) == pytest.approx(7.5e10)


def test_one_sample_is_enough():
    alone = Throughput((sample(LARGE, 1e11),))
    assert {alone.flops_per_second(flops) for flops in (1.0, 1e8, 1e15)} == {alone.samples[0].flops_per_second}


def test_an_update_takes_as_long_as_it_has_parameters():
    assert SPEED.update_seconds(10**9) == pytest.approx(2.0)


def test_samples_out_of_order_are_a_bug():
    with pytest.raises(AssertionError):
        Throughput((sample(LARGE, 1e11), sample(SMALL, 1e11)))
    with pytest.raises(AssertionError):
        Throughput(())


def test_a_step_takes_longer_with_fewer_workers_more_tokens_or_more_to_exchange():
    base = step_seconds(SMALL, RECIPE, machine())
    assert step_seconds(SMALL, replace(RECIPE, num_workers=1), machine(1)) > base
    assert step_seconds(SMALL, replace(RECIPE, global_batch=32), machine()) > base
    assert step_seconds(LARGE, RECIPE, machine()) > base
    assert step_seconds(SMALL, RECIPE, machine(precision="bfloat16")) < base


def test_starts_and_checkpoints_grow_with_the_model():
    here = machine()
    assert start_seconds(LARGE, here) > start_seconds(SMALL, here) > 0
    assert checkpoint_seconds(LARGE, here) > checkpoint_seconds(SMALL, here) > 0
    assert pause_seconds(LARGE, here) == checkpoint_seconds(LARGE, here), "processors write it themselves"


FLEET = rented(fleet_of("16xH100", read_catalogue()), vocab_size=32_000, sequence_length=2048)
WIDE = shape_of_width(4096, vocab_size=32_000, max_length=2048)
TRAINED = Recipe(
    steps=10, global_batch=256, micro_batch=4, sequence_length=2048, learning_rate=1e-4, num_workers=16, zero_stage=1, precision="bfloat16"
)


def test_accelerators_wait_for_what_they_cannot_hide():
    base = step_seconds(WIDE, TRAINED, FLEET)
    assert step_seconds(WIDE, replace(TRAINED, zero_stage=3), FLEET) > base, "weights are gathered for every micro-batch"
    assert step_seconds(WIDE, replace(TRAINED, gradient_checkpointing=True), FLEET) == pytest.approx(4 / 3 * base, rel=0.1)
    assert step_seconds(WIDE, replace(TRAINED, offload="optimizer"), FLEET) > base
    assert step_seconds(WIDE, replace(TRAINED, tensor=8, zero_stage=0), FLEET) > base
    slow = replace(FLEET, network_bytes_per_s=1e9)
    assert step_seconds(WIDE, TRAINED, slow) > 2 * base


def test_a_checkpoint_of_accelerators_pauses_for_the_copy_only():
    assert pause_seconds(WIDE, FLEET) < 0.2 * checkpoint_seconds(WIDE, FLEET)
