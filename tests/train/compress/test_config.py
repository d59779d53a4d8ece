"""Settings of compress: a mistake is one line, before any model is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from serve.engine.config import EngineConfig
from train.compress.config import CompressConfig, DivergeConfig, parse_budget


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": "int3x"}, "options: no option 'int3x'; use some of keep, int8"),
        ({"options": "keep"}, "options: keep alone compresses nothing"),
        ({"options": "int8,int4"}, "options: int8,int4 are several; give a --budget"),
        ({"options": "int8,w8a8"}, "options: w8a8 is not offered, since no kernel takes activations of 8 bits"),
        ({"options": "drop-block"}, "options: drop-block is chosen block by block; give a --budget"),
        ({"options": "drop-block,drop-mlp", "budget": ("flips=0.1",)}, "options: drop-block, drop-mlp alone; add int8"),
        ({"budget": ("flips",)}, "budget: 'flips' is not understood; say flips=0.02"),
        ({"budget": ("bits=4",)}, "budget: 'bits=4' is not understood"),
        ({"budget": ("flips=few",)}, "budget: 'few' is not a number"),
        ({"budget": ("flips=1.5",)}, "budget: 'flips=1.5' is out of range; flips is at least 0 and at most 1"),
        ({"budget": ("kl=nan",)}, "budget: 'kl=nan' is out of range"),
        ({"budget": ("kl=-1",)}, "budget: 'kl=-1' is out of range"),
        ({"budget": ("flips=0.1", "flips=0.2")}, "budget: flips is given twice"),
        ({"prompts": ""}, "prompts: give either"),
        ({"tokens": "runs/tokens"}, "prompts: give either"),
        ({"num_prompts": 1}, "num_prompts: must be at least 2, not 1"),
        ({"search_prompts": 0}, "search_prompts: must be at least 1, not 0"),
        ({"engine": EngineConfig(kernels="native")}, "engine.kernels: native kernels run bfloat16 only, and the judging needs float32 too"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        CompressConfig(**{"model": "tern", "prompts": "held-out.jsonl", **fields})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_kernels_that_run_both_number_types_are_taken(kernels: Any) -> None:
    assert CompressConfig(model="tern", prompts="held-out.jsonl", engine=EngineConfig(kernels=kernels)).engine.kernels == kernels


def test_a_budget_chooses_among_options_and_without_one_there_is_one() -> None:
    searched = CompressConfig(model="tern", prompts="p", budget=("flips=2%", "kl=0.01"))
    assert searched.bounds == {"flips": 0.02, "kl": 0.01}
    assert len(searched.choices) > 1
    assert [option.name for option in CompressConfig(model="tern", prompts="p").choices] == ["int8"]
    assert parse_budget(("flips=0",)) == {"flips": 0.0}, "impossible, but understood"


@pytest.mark.parametrize("models", [(), ("a",), ("a", "b", "c")])
def test_two_models_diverge(models: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"models: give two folders, the base and the other one, not {len(models)}"):
        DivergeConfig(models=models, prompts="p")
