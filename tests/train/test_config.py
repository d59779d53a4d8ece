from __future__ import annotations

import pytest

from cluster.settings import field_help, parse
from train.config import EvaluateConfig, PretrainConfig, overridden
from train.recipe import Recipe
from train.tuning.config import TuneConfig

TABLE = {"steps": 100, "global_batch": 8, "micro_batch": 4, "sequence_length": 64, "learning_rate": 1e-3, "warmup_steps": 40}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_batch": 6}, "cannot be dealt evenly to 2 workers"),
        ({"steps": 0}, "steps: is 0; must be at least 1"),
        ({"zero_stage": 4}, "must be 0, 1, 2 or 3"),
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"precision": "fp8"}, "precision"),
        ({"stepz": 3}, "did you mean 'steps'"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(Recipe, TABLE | change, where="plan.toml [train]")
    assert str(caught.value).startswith("plan.toml [train]: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "data", "message"),
    [
        (TuneConfig, {"model": "m", "output": "o", "data": []}, "data: is empty"),
        (TuneConfig, {"model": "m", "output": "o", "data": ["d"], "held_out": 1.5}, "held_out"),
        (TuneConfig, {"model": "m", "output": "o", "data": ["d"], "rank": 0}, "rank: is 0"),
        (EvaluateConfig, {"models": [], "data": ["d"], "output": "o"}, "models: is empty"),
        (EvaluateConfig, {"models": ["m"], "data": ["d"], "output": "o", "overlap": 1.0}, "overlap"),
        (PretrainConfig, {"plan": "p", "output": "o", "max_failures": -2}, "max_failures"),
        (PretrainConfig, {"plan": "p", "output": "o", "min_workers": 0}, "min_workers: is 0"),
    ],
)
def test_settings_refuse_nonsense(cls, data, message):
    with pytest.raises(ValueError, match=message):
        parse(cls, data, where="command line")


def test_every_setting_is_documented():
    for cls in (Recipe, PretrainConfig, TuneConfig, EvaluateConfig):
        assert set(field_help(cls)) == set(cls.__dataclass_fields__)


def test_overrides_replace_the_plan_and_keep_it_consistent():
    config = PretrainConfig(plan="p", output="o", steps=50, num_workers=4, precision="float32")
    recipe = parse(Recipe, overridden(TABLE | {"tokens": "elsewhere"}, config), where="test")
    assert (recipe.steps, recipe.warmup_steps, recipe.num_workers, recipe.micro_batch) == (50, 5, 4, 2)
    assert recipe.micro_steps == 1
    assert parse(Recipe, overridden(TABLE, PretrainConfig(plan="p", output="o")), where="test") == Recipe(**TABLE)


@pytest.mark.parametrize(
    ("table", "given", "message"),
    [
        ({}, {"num_workers": 0}, "num_workers: is 0"),
        ({"global_batch": None}, {"num_workers": 1}, "'global_batch' is required"),
        ({"global_batch": "many"}, {"num_workers": 1}, "global_batch: is 'many'; give a whole number"),
        ({"micro_batch": 0}, {"num_workers": 1}, "micro_batch: is 0"),
        ({"micro_batch": []}, {"num_workers": 1}, "micro_batch"),
        ({"tensor": "two"}, {"num_workers": 2}, "tensor: is 'two'; give a whole number"),
        ({"warmup_steps": "few"}, {"steps": 3}, "warmup_steps: is 'few'; give a whole number"),
    ],
)
def test_overrides_of_a_plan_that_is_wrong_leave_the_word_to_the_recipe(table: dict, given: dict, message: str):
    plan = {name: value for name, value in {**TABLE, **table}.items() if value is not None}
    with pytest.raises(ValueError, match=message) as caught:
        parse(Recipe, overridden(plan, PretrainConfig(plan="p", output="o", **given)), where="test")
    assert str(caught.value).startswith("test: ")


def test_muon_on_one_worker_needs_no_stage_of_its_own():
    config = PretrainConfig(plan="p", output="o", num_workers=1, optimizer="muon", guard=0.0, gradient_checkpointing=True)
    recipe = parse(Recipe, overridden(TABLE, config), where="test")
    assert (recipe.optimizer, recipe.zero_stage, recipe.guard, recipe.gradient_checkpointing) == ("muon", 2, 0.0, True)
