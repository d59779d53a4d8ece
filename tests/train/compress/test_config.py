"""Settings of compress: a mistake is one line, before any model is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from serve.engine.config import EngineConfig
from train.compress.config import CompressConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "int3"}, "method: 'int3' is not one of int8"),
        ({"prompts": ""}, "prompts: give either"),
        ({"tokens": "runs/tokens"}, "prompts: give either"),
        ({"num_prompts": 0}, "num_prompts: must be at least 1, not 0"),
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
