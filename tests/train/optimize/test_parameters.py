from __future__ import annotations

from pathlib import Path

import torch

from train.optimize.muon import Muon
from train.optimize.parameters import hidden_matrices, make_optimizers
from train.recipe import Recipe

RECIPE = {"steps": 1, "global_batch": 1, "micro_batch": 1, "sequence_length": 8, "learning_rate": 1e-3, "num_workers": 1}


def model_of(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_every_parameter_has_one_optimizer_and_the_right_one(tiny_model_dir: Path):
    model = model_of(tiny_model_dir)
    names = {id(p): name for name, p in model.named_parameters()}
    adam, muon = make_optimizers(model, Recipe(**RECIPE, optimizer="muon"))
    assert isinstance(muon, Muon)
    moved = [[names[id(p)] for group in optimizer.param_groups for p in group["params"]] for optimizer in (adam, muon)]
    assert sorted(moved[0] + moved[1]) == sorted(names.values())
    assert all("proj" in name for name in moved[1])
    assert all("embed" in name or "norm" in name or "lm_head" in name for name in moved[0])
    decays = {names[id(p)]: group["weight_decay"] for group in adam.param_groups for p in group["params"]}
    assert all((decay == 0) == ("norm" in name) for name, decay in decays.items())


def test_frozen_matrices_are_left_alone(tiny_model_dir: Path):
    model = model_of(tiny_model_dir)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    assert {tuple(p.shape) for p in hidden_matrices(model)} == {tuple(p.shape) for p in model.parameters() if p.requires_grad}
    assert len(make_optimizers(model, Recipe(**RECIPE, optimizer="muon"))) == 1


def test_the_state_of_the_first_step_is_there_before_it(tiny_model_dir: Path):
    model = model_of(tiny_model_dir)
    for optimizer in make_optimizers(model, Recipe(**RECIPE, optimizer="muon")):
        values = [tensor for state in optimizer.state.values() for tensor in state.values()]
        assert len(optimizer.state) == sum(len(group["params"]) for group in optimizer.param_groups)
        assert not any(bool(tensor.any()) for tensor in values)
