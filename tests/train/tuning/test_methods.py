from __future__ import annotations

import re
import typing
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.tuning.tuned import base, changed, config_of, logits
from train.architectures import make_config, make_model
from train.corpus import Sequences
from train.loop import run
from train.plain import PlainStepper
from train.plan.shapes import Architecture, shape_of_width
from train.recipe import Recipe
from train.state import State
from train.tuning.config import TRAITS, MethodName
from train.tuning.methods import METHODS, attach, objective

PROMPTS = ("prompt", "prefix", "p_tuning")


def sequences(num_rows: int = 24, width: int = 20) -> Sequences:
    rng = np.random.default_rng(0)
    tokens = (rng.integers(0, 4, (num_rows, 1)) * 7 + np.arange(width) % 5 + 40).astype(np.uint32)
    return Sequences([tokens], [np.ones((num_rows, width), np.uint16)], [np.ones((num_rows, width), bool)])


def test_what_is_known_beforehand_is_so():
    assert list(METHODS) == list(TRAITS) == list(typing.get_args(MethodName))
    for name, method in METHODS.items():
        assert (method.merge is not None) == TRAITS[name].merges, name
        assert (method.write is not None) == TRAITS[name].alone, name


@pytest.mark.parametrize("method", METHODS)
def test_attaching_changes_nothing_and_training_learns(method: str, tiny_model_dir: Path):
    tuned, plain = attach(base(tiny_model_dir), config_of(method), 8), base(tiny_model_dir)
    if method not in PROMPTS:
        torch.testing.assert_close(logits(tuned), logits(plain), rtol=0, atol=1e-5)
    share = sum(p.numel() for p in tuned.parameters() if p.requires_grad) / sum(p.numel() for p in plain.parameters())
    assert share == 1.0 if method == "full" else 0 < share < 0.7
    recipe = Recipe(
        steps=8, global_batch=8, micro_batch=4, sequence_length=20, learning_rate=TRAITS[method].learning_rate, weight_decay=0.0,
        zero_stage=0, num_workers=1, precision="float32", guard=0.0,
    )  # fmt: skip
    stepper = PlainStepper(objective(tuned, config_of(method), 8), recipe)
    losses = [record.loss for record in run(stepper, sequences(), recipe, state=State()).records]
    assert losses[-1] < losses[0] - 0.05, losses


@pytest.mark.parametrize("method", [name for name, traits in TRAITS.items() if traits.merges])
def test_a_merged_model_computes_what_the_tuned_one_does(method: str, tiny_model_dir: Path, tmp_path: Path):
    from train.model_folder import write_model

    tuned = changed(method, tiny_model_dir)
    before = logits(tuned)
    assert (before - logits(base(tiny_model_dir))).abs().max() > 0.1
    write_model(METHODS[method].merge(tuned), tmp_path, dtype=torch.float32, tokenizer=tiny_model_dir)
    torch.testing.assert_close(logits(base(tmp_path)), before, rtol=1e-4, atol=1e-4)


REFUSED = {
    "sliding": {"bitfit"},
    "alibi": {"ia3", "bitfit"},
    "moe": {"dora", "bitfit"},
    "ssm": {"ia3", "prefix", "adapter"},
    "hybrid": {"ia3", "prefix"},
    "linear": {"ia3", "prefix"},
}


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")  # peft's own, of Mixtral's experts
@pytest.mark.parametrize("architecture", typing.get_args(Architecture))
def test_every_architecture_is_tuned_or_refused_in_one_line(architecture: str):
    shape = shape_of_width(32, vocab_size=90, max_length=32, architecture=architecture)
    tokens, positions = torch.arange(24).view(2, 12), torch.arange(12).expand(2, -1)
    for method in METHODS:
        model = make_model(make_config(shape)).train()  # Mamba-2 takes another path in training
        config = config_of(method, rank=2, virtual_tokens=3)
        if method in REFUSED.get(architecture, ()):
            with pytest.raises(ValueError, match=r"^(targets|method): .*") as caught:
                attach(model, config, 4)
            assert "\n" not in str(caught.value)
            continue
        asked = objective(attach(model, config, 4), config, 4).train()
        asked(tokens, tokens.roll(-1, 1), positions).backward()
        moved = [name for name, p in asked.named_parameters() if p.requires_grad and p.grad is not None]
        assert moved
        beside = [name for name in moved if re.search(r"out_proj\..*(lora|up|down)", name)]
        assert not (beside and architecture in ("ssm", "hybrid")), "fused kernels pass over what stands beside it"


def test_adaptive_ranks_do_without_loss_scaling(tiny_model_dir: Path):
    with pytest.raises(ValueError, match="precision: adalora judges updates by their gradients"):
        attach(base(tiny_model_dir), config_of("adalora", precision="float16"), 4)


def test_targets_are_for_methods_that_adapt_modules(tiny_model_dir: Path):
    for method in ("full", "bitfit", "prompt", "prefix", "p_tuning"):
        with pytest.raises(ValueError, match=f"targets: {method} adapts no modules"):
            attach(base(tiny_model_dir), config_of(method, targets=("q_proj",)), 1)


def test_targets_that_do_not_exist_are_one_line(tiny_model_dir: Path):
    for method in ("lora", "ia3", "adapter"):
        with pytest.raises(ValueError, match="targets: nonsense") as caught:
            attach(base(tiny_model_dir), config_of(method, targets=("nonsense",)), 1)
        assert "\n" not in str(caught.value)
