"""Predicted bytes against what autograd saves, and the laws that every footprint obeys."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.architectures import make_config, make_model
from train.elastic.pieces import snapshot
from train.loss import decoder
from train.plain import PlainStepper
from train.plan.memory import _TOLD_APART, LIVE_ELEMENTS, footprint, host_bytes, layer_activation_bytes
from train.plan.shapes import ModelShape, shape_of_width
from train.recipe import Recipe
from train.segments import honours_segments, positions_taken

BATCH, LENGTH = 2, 64
TOLERANCE = {"dense": 0.02, "sliding": 0.06, "alibi": 0.02, "moe": 0.06, "ssm": 0.2, "hybrid": 0.2, "linear": 0.25}


def saved_bytes_per_token(shape: ModelShape, dtype: torch.dtype, *, packed: bool) -> float:
    """Bytes of distinct storages, parameters apart, that the decoder saves for its backward pass, told of documents or not."""
    model = make_model(make_config(shape), dtype=dtype)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, tuple[int, torch.Tensor]] = {}  # the tensors are kept so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    tokens = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    documents = torch.arange(LENGTH // 4).repeat(4).expand(BATCH, LENGTH)
    positions = positions_taken(decoder(model), documents) if packed else {}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        decoder(model)(input_ids=tokens, use_cache=False, **positions).last_hidden_state.sum()
    return sum(size for size, _ in saved.values()) / (BATCH * LENGTH)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize(("architecture", "packed"), [*((name, False) for name in TOLERANCE), *((name, True) for name in _TOLD_APART)])
def test_a_layers_activations_are_what_autograd_saves(architecture, packed, width, precision):
    shape = shape_of_width(width, vocab_size=300, max_length=LENGTH, architecture=architecture)
    period = shape.attention_every or 1
    shorter, deeper = (ModelShape.from_table(shape.table() | {"num_layers": n * period}) for n in (1, 2))
    dtype = getattr(torch, precision)
    saved = [saved_bytes_per_token(one, dtype, packed=packed) for one in (shorter, deeper)]
    measured = (saved[1] - saved[0]) / period
    found = layer_activation_bytes(deeper, precision, LENGTH, packed=packed)
    assert found == pytest.approx(measured, rel=TOLERANCE["sliding" if packed else architecture])


SHAPE = shape_of_width(256, vocab_size=8192, max_length=512)


def of(**changes):
    options = {"zero_stage": 2, "num_workers": 2, "micro_batch": 4, "sequence_length": 256, "precision": "bfloat16"} | changes
    return footprint(SHAPE, **options)


@given(st.integers(0, 3), st.integers(1, 64), st.integers(1, 64), st.sampled_from(["bfloat16", "float32"]))
def test_terms_are_positive_add_up_and_grow_with_the_micro_batch(stage, workers, micro, precision):
    small = of(zero_stage=stage, num_workers=workers, micro_batch=micro, precision=precision)
    large = of(zero_stage=stage, num_workers=workers, micro_batch=micro + 1, precision=precision)
    assert all(value >= 0 for value in small.terms().values())
    assert small.total == pytest.approx(sum(small.terms().values()))
    assert large.total > small.total


@given(st.integers(2, 64))
def test_a_higher_stage_needs_no_more_bytes_and_one_worker_gains_nothing(workers):
    totals = [of(zero_stage=stage, num_workers=workers).total for stage in range(4)]
    assert totals[:3] == sorted(totals[:3], reverse=True)
    assert len({of(zero_stage=stage, num_workers=1).total for stage in range(4)}) == 1


@given(st.integers(8, 64), st.sampled_from(["bfloat16", "float32"]))
def test_stage_3_pays_for_models_larger_than_what_it_gathers(workers, precision):
    """A small one it holds whole while it computes, and in shards besides."""
    large = shape_of_width(3072, vocab_size=32_768, max_length=256)

    def of_stage(shape, stage):
        return footprint(shape, zero_stage=stage, num_workers=workers, micro_batch=1, sequence_length=256, precision=precision)

    assert large.num_parameters > 4 * LIVE_ELEMENTS
    assert of_stage(large, 3).total < of_stage(large, 2).total
    assert of_stage(SHAPE, 3).weights > of_stage(SHAPE, 2).weights


def test_a_worked_example():
    example, parameters = of(zero_stage=2, num_workers=2), SHAPE.num_parameters
    assert example.weights == 2 * parameters
    assert example.gradients == (2 + 4) * parameters / 2 + 4 * parameters / 2
    assert example.buckets == 2 * parameters
    assert example.optimizer == 12 * parameters / 2
    assert example.copies == 12 * parameters / 2 + 12 * parameters / 2
    assert example.logits == 4 * 256 * 8192 * 8 + 4 * 8192 * 256


@pytest.mark.parametrize("architecture", TOLERANCE)
def test_what_gets_a_mask_is_what_keeps_documents_apart(architecture):
    shape = shape_of_width(64, vocab_size=300, max_length=LENGTH, architecture=architecture)
    assert honours_segments(decoder(make_model(make_config(shape))), shape.vocab_size) == (architecture in _TOLD_APART)


@pytest.mark.parametrize(("stage", "num_workers"), [(0, 1), (0, 2)])
def test_copies_are_what_the_guard_and_a_checkpoint_hold(stage, num_workers):
    """Of a real stepper's pieces; at stage 0 the guard remembers them whole, and each worker writes its share of a checkpoint."""
    shape = shape_of_width(64, vocab_size=300, max_length=LENGTH)
    recipe = Recipe(steps=1, global_batch=2, micro_batch=1, sequence_length=LENGTH, learning_rate=1e-3, num_workers=1, zero_stage=stage)
    stepper = PlainStepper(make_model(make_config(shape)), recipe)
    parts = [snapshot(stepper.pieces()), snapshot(stepper.pieces(), 0, num_workers)]
    held = sum(f.values.nbytes for part in parts for f in part if not f.scalar)
    expected = footprint(
        shape, zero_stage=stage, num_workers=num_workers, micro_batch=1, sequence_length=LENGTH, precision="float32"
    ).copies
    assert held == pytest.approx(expected, rel=1e-3)


def test_plain_torch_holds_float32_and_the_casts():
    alone, parameters = of(zero_stage=2, num_workers=1), SHAPE.num_parameters
    assert (alone.weights, alone.gradients, alone.optimizer) == (6 * parameters, 4 * parameters, 8 * parameters)


def test_copies_are_the_devices_only_where_it_is_the_processor():
    here, there = of(zero_stage=2, num_workers=4), of(zero_stage=2, num_workers=4, on_processor=False)
    assert here.copies == 2 * 12 * SHAPE.num_parameters / 4 == host_bytes(SHAPE, zero_stage=2, num_workers=4)
    assert there.copies == 0
    assert here.total - there.total == pytest.approx(here.copies)


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.booleans())
def test_splits_checkpointing_and_offload_save_device_memory(tensor, sequence, checkpointing):
    wide = shape_of_width(1024, vocab_size=8192, max_length=512)

    def total(**changes):
        options = {"zero_stage": 1, "num_workers": 8, "micro_batch": 8, "sequence_length": 512, "precision": "bfloat16"}
        return footprint(wide, on_processor=False, **(options | changes)).total

    assert total(tensor=2 * tensor, zero_stage=0) < total(tensor=tensor, zero_stage=0)
    assert total(sequence=2 * sequence) < total(sequence=sequence)
    assert total(gradient_checkpointing=True, sequence=sequence) < total(sequence=sequence)
    assert total(offload="optimizer", gradient_checkpointing=checkpointing) < total(gradient_checkpointing=checkpointing)
    assert host_bytes(wide, zero_stage=1, num_workers=8, offload="optimizer") > host_bytes(wide, zero_stage=1, num_workers=8)


def test_the_constants_are_those_of_the_training_code():
    from train import loss, zero
    from train.plan import memory

    assert memory.BUCKET_ELEMENTS == zero._BUCKET_ELEMENTS
    assert memory.LOGIT_ELEMENTS == loss._CHUNK_ELEMENTS
    recipe = Recipe(steps=1, global_batch=2, micro_batch=1, sequence_length=8, learning_rate=1.0, zero_stage=3)
    assert zero.deepspeed_config(recipe, "float32")["zero_optimization"]["stage3_max_live_parameters"] == memory.LIVE_ELEMENTS
