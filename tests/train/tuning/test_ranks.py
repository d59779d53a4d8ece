from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.corpus import Sequences
from train.elastic.pieces import Held, load, snapshot
from train.plain import PlainStepper
from train.recipe import Recipe
from train.tuning.config import TuneConfig
from train.tuning.methods import attach, objective
from train.tuning.ranks import AdaptiveRanks, Budget

STEPS = 12


@given(first=st.integers(2, 400), share=st.floats(0.1, 1.0), steps=st.integers(2, 500))
def test_the_budget_falls_from_the_first_to_the_last(first: int, share: float, steps: int):
    budget = Budget(first=first, last=max(1, round(share * first)), steps=steps)
    course = [budget.at(step) for step in range(steps + 1)]
    assert course == sorted(course, reverse=True)
    assert course[budget.begin] == first
    assert set(course[budget.end :]) == {budget.last}


def adaptive(folder: Path) -> AdaptiveRanks:
    from transformers import AutoModelForCausalLM

    config = TuneConfig(model="m", data=("d",), output="o", method="adalora", rank=4, targets=("q_proj", "down_proj"))
    return objective(attach(AutoModelForCausalLM.from_pretrained(folder), config, STEPS), config, STEPS)


RECIPE = Recipe(
    steps=STEPS, global_batch=4, micro_batch=2, sequence_length=12, learning_rate=1e-2, num_workers=1, zero_stage=0, precision="float32",
    guard=0.0, weight_decay=0.0,
)  # fmt: skip


def stepping(stepper: PlainStepper, first: int, last: int) -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(4, 400, (4 * STEPS, 12)).astype(np.uint32)
    source = Sequences([rows], [np.ones_like(rows, dtype=np.uint16)], [np.ones_like(rows, dtype=bool)])
    for step in range(first, last):
        batches = [source.batch(np.arange(4 * step + i, 4 * step + i + 2)) for i in (0, 2)]
        stepper.step(batches, 44, 1e-2)


def test_pruning_is_pefts(tiny_model_dir: Path):
    """The same gradients through peft's own allocator choose the same ranks."""
    mine = adaptive(tiny_model_dir)
    stepper, budget = PlainStepper(mine, RECIPE), mine.budget
    allocator = mine.model.base_model.rankallocator
    settings = allocator.peft_config
    settings.tinit, settings.tfinal, settings.total_step, settings.target_r = budget.begin, STEPS - budget.end, STEPS, 4
    allocator._set_budget_scheduler(mine.model.base_model.model)
    own, pattern, compared = mine.after_step, None, 0

    def both() -> None:
        nonlocal pattern, compared
        for index, (_, parameter) in enumerate(mine._named()):
            parameter.grad = getattr(mine, f"gradient_{index}").clone()
        values = {n: p.detach().clone() for n, p in mine.model.named_parameters() if "lora_E" in n}
        step = int(mine.steps_done) + 1
        if step <= budget.end:
            _, chosen = allocator.update_and_allocate(mine.model.base_model.model, step, force_mask=step == budget.end)
            pattern = chosen or pattern
        with torch.no_grad():
            for name, parameter in mine.model.named_parameters():
                if name in values:
                    parameter.copy_(values[name])
                parameter.grad = None
        own()
        if pattern is not None:
            theirs = {name.split(".lora_E")[0]: kept for name, kept in pattern.items()}
            assert {name: kept.bool().tolist() for name, kept in mine.kept().items()} == theirs
            compared += 1

    mine.after_step = both
    stepping(stepper, 0, STEPS)
    assert compared > STEPS // 2
    left = sum(int(kept.sum()) for kept in mine.kept().values())
    assert left == budget.last < budget.first
    for name, module in mine.model.get_base_model().named_modules():
        if hasattr(module, "lora_E"):
            assert (module.lora_E["default"][:, 0] != 0).tolist() == mine.kept()[name].bool().tolist()


def test_ranks_survive_a_restart(tiny_model_dir: Path):
    whole, first, second = (PlainStepper(adaptive(tiny_model_dir), RECIPE) for _ in range(3))
    stepping(whole, 0, STEPS)
    stepping(first, 0, 6)
    load(second.pieces(), Held(snapshot(first.pieces())))
    stepping(second, 6, STEPS)
    for (name, expected), (_, got) in zip(whole.weights().items(), second.weights().items(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7, msg=name)


def test_the_penalty_is_in_the_gradient_and_not_in_the_loss(tiny_model_dir: Path):
    mine = adaptive(tiny_model_dir)
    rows = torch.arange(40, 52)[None]
    labels, positions = rows + 1, torch.arange(12)[None]
    value = mine.train()(rows, labels, positions)
    assert value.item() == pytest.approx(mine.eval()(rows, labels, positions).item(), rel=1e-6)
    value.backward()
    gradients = {name: p.grad for name, p in mine._named()}
    assert all(gradients[name].abs().max() > 0 for name in gradients if name.endswith("lora_A"))  # with values at 0, from the penalty alone
