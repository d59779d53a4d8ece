"""A compressed model before, while and after it moves: what was zero stays zero, what was an integer stays it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from train.compress import options
from train.compress.calibrate import matrices, weight_of
from train.compress.candidates import degraded, integers_of
from train.compress.movable import WAYS, movable, settled

CHOSEN = ("int4", "sparse75-magnitude", "2:4-magnitude", "rank50", "int8", "keep")
TEXT = torch.tensor([[4, 9, 17, 30, 60, 9]])


def base(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def variants_of(model):
    """Every option somewhere among the linear layers, and the embedding in int8."""
    found = {}
    for number, matrix in enumerate(matrices(model)):
        name = CHOSEN[number % len(CHOSEN)] if matrix.role == "linear" else "int8"
        if name != "keep":
            found[matrix.name] = degraded(weight_of(model, matrix.name), options.option(name), None)
    assert {variant.option.name for variant in found.values()} == {*CHOSEN} - {"keep"}
    return found


def changed(model, variants):
    with torch.no_grad():
        for name, variant in variants.items():
            weight_of(model, name).copy_(variant.dense)
    return model


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TEXT).logits


@pytest.mark.parametrize("way", WAYS)
def test_it_starts_as_the_variants_are_and_settles_there(way, tiny_model_dir):
    model = base(tiny_model_dir)
    variants = variants_of(model)
    expected = logits(changed(base(tiny_model_dir), variants))
    moving = movable(model, variants, way)
    torch.testing.assert_close(logits(moving), expected, rtol=1e-4, atol=1e-5)
    same, plain = settled(moving, variants)
    for name, variant in variants.items():
        assert same[name].option == variant.option
        torch.testing.assert_close(same[name].dense, variant.dense)
    original = dict(base(tiny_model_dir).named_parameters())
    assert plain.keys() <= original.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(weight, original[name].detach())


@pytest.mark.parametrize("way", WAYS)
def test_moving_keeps_zeros_integers_and_sizes(way, tiny_model_dir):
    model = base(tiny_model_dir)
    variants = variants_of(model)
    moving = movable(model, variants, way)
    adam = torch.optim.AdamW([p for p in moving.parameters() if p.requires_grad], lr=0.03, weight_decay=0.0)
    for _ in range(3):
        moving(input_ids=TEXT, labels=TEXT).loss.backward()
        adam.step()
        adam.zero_grad()
    found, plain = settled(moving, variants)
    for name, variant in variants.items():
        now = found[name]
        assert now.option == variant.option
        assert now.bytes == variant.bytes
        if variant.option.kind == "sparse":
            assert not now.dense[variant.dense == 0].any()
            assert torch.equal(now.dense, variant.dense) == (way == "norms")
        if variant.option.kind == "int":
            assert torch.equal(integers_of(now), integers_of(variant))
            assert torch.equal(now.dense, variant.dense) == ("embed" in name)
        if variant.option.kind == "lowrank":
            assert torch.equal(now.dense, variant.dense) == (way != "full" and way != "lora")
    assert [name for name in plain if "norm" in name]
    assert any(name.endswith("proj.weight") for name in plain) == (way != "norms")
    fresh = changed(base(tiny_model_dir), found)
    with torch.no_grad():
        for name, weight in plain.items():
            fresh.get_parameter(name).copy_(weight)
    torch.testing.assert_close(logits(fresh), logits(moving), rtol=1e-4, atol=1e-4)


def test_the_scales_gradient_is_that_of_the_weights(tiny_model_dir):
    model = base(tiny_model_dir)
    variants = variants_of(model)
    name = next(name for name, variant in variants.items() if variant.option.name == "int4")
    plain = changed(base(tiny_model_dir), variants)
    plain(input_ids=TEXT, labels=TEXT).loss.backward()
    moving = movable(model, variants, "norms")
    moving(input_ids=TEXT, labels=TEXT).loss.backward()
    q = integers_of(variants[name]).float()
    gain, scale = moving.get_submodule(name).parametrizations.weight.original, variants[name].tensors["weight_scale"]
    expected = (weight_of(plain, name).grad * q).view(len(q), scale.shape[1], -1).sum(2) * scale
    torch.testing.assert_close(gain.grad, expected, rtol=1e-4, atol=1e-7)
