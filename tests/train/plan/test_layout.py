"""Layouts: what is chosen fits and can be run, and what it does without has a price."""

import doctest
from dataclasses import replace

import pytest

from train.plan import layout as module
from train.plan.catalogue import fleet_of, read_catalogue
from train.plan.layout import arrange
from train.plan.rented import rented
from train.plan.shapes import shape_of_width
from train.recipe import Recipe

RECIPE = Recipe(steps=1, global_batch=8, micro_batch=1, sequence_length=2048, learning_rate=1e-4, num_workers=8, zero_stage=1)


def fleet(text: str, **changes):
    return replace(rented(fleet_of(text, read_catalogue()), vocab_size=32_000, sequence_length=2048), **changes)


def shape(width: int):
    return shape_of_width(width, vocab_size=32_000, max_length=2048)


def test_doctests():
    assert doctest.testmod(module).failed == 0


def test_small_models_are_sharded_as_little_as_may_be():
    placed = arrange(shape(1024), 512, RECIPE, fleet("8xH100"), 10**6)
    assert (placed.recipe.zero_stage, placed.recipe.tensor, placed.recipe.gradient_checkpointing) == (1, 1, False)
    assert placed.fits(fleet("8xH100"))
    assert placed.recipe.global_batch == 512
    alone = arrange(shape(1024), 64, RECIPE, fleet("1xH100"), 10**6)
    assert alone.recipe.zero_stage == 0


@pytest.mark.parametrize("width", [2048, 4096, 6144, 8192])
@pytest.mark.parametrize("machines", ["8xH100", "8xA100", "16xA100", "64xH100", "4xL4"])
def test_what_is_chosen_is_the_fastest_that_fits(width, machines):
    machine = fleet(machines)
    placed = arrange(shape(width), 512, RECIPE, machine, 10**6)
    if placed.fits(machine):
        assert placed.memory.total <= machine.memory_bytes
        roomy = arrange(shape(width), 512, RECIPE, replace(machine, memory_bytes=1e15), 10**6)
        assert roomy.seconds_per_sequence <= placed.seconds_per_sequence * module.ALIKE
    else:
        assert placed.memory.total > machine.memory_bytes or placed.host > machine.host_memory_bytes


def test_less_memory_shards_more():
    stages = []
    for gigabytes in (1000, 120, 60, 40):
        placed = arrange(shape(4096), 512, RECIPE, fleet("8xH100", memory_bytes=gigabytes * 1e9), 10**6)
        stages.append((placed.recipe.gradient_checkpointing, placed.recipe.zero_stage))
        assert placed.fits(fleet("8xH100", memory_bytes=gigabytes * 1e9)), gigabytes
    assert stages[0] == (False, 1)
    assert stages[-1] > stages[0]


def test_one_small_device_offloads():
    roomy, tight = fleet("1xL4", host_memory_bytes=256e9), fleet("1xL4")
    placed = arrange(shape(2560), 64, RECIPE, roomy, 10**6)
    assert placed.recipe.offload != "none"
    assert placed.fits(roomy)
    assert not placed.fits(tight), "the host must hold what is offloaded, what the guard remembers and a checkpoint"


def test_more_workers_than_sequences_split_models_or_sequences():
    placed = arrange(shape(8192), 16, RECIPE, fleet("64xH100"), 10**6)
    assert max(placed.recipe.tensor, placed.recipe.sequence) > 1
    assert placed.recipe.global_batch <= 64


def test_architectures_that_cannot_be_split_are_not():
    state_space = shape_of_width(4096, vocab_size=32_000, max_length=2048, architecture="ssm")
    placed = arrange(state_space, 16, RECIPE, fleet("64xH100"), 10**6)
    assert placed.recipe.workers_per_replica == 1
