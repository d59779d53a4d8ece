from __future__ import annotations

import json

import pytest

from train.recipe import Recipe
from train.zero import deepspeed_config

RECIPE = {"steps": 9, "global_batch": 12, "micro_batch": 3, "sequence_length": 64, "learning_rate": 1e-3}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16", "float16"])
def test_the_configuration_says_what_the_recipe_says(stage: int, arithmetic: str):
    config = deepspeed_config(Recipe(**RECIPE, zero_stage=stage, clip=0.5), arithmetic)
    assert config["zero_optimization"]["stage"] == stage
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (arithmetic == "bfloat16", arithmetic == "float16")
    assert config["gradient_clipping"] == 0.5
    assert config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 2 == 12
    assert "scheduler" not in config
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize(("stage", "offload", "kept"), [(1, "optimizer", {"optimizer"}), (3, "parameters", {"optimizer", "param"})])
def test_what_is_offloaded_is_kept_in_host_memory(stage: int, offload: str, kept: set[str]):
    zero = deepspeed_config(Recipe(**RECIPE, zero_stage=stage, offload=offload), "bfloat16")["zero_optimization"]
    assert {name.removeprefix("offload_"): place for name, place in zero.items() if "offload" in name} == {
        n: {"device": "cpu"} for n in kept
    }


def test_gradients_of_a_bfloat16_model_are_added_up_in_float32():
    assert deepspeed_config(Recipe(**RECIPE), "bfloat16")["data_types"] == {"grad_accum_dtype": "fp32"}
