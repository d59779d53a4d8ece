"""A recipe -> the DeepSpeed configuration that carries it out.

Promise: a pure function, so what a run would do can be read and tested without starting one; the learning rate is set by
the loop, step by step, and gradients are weighted by tokens in the loop, so neither a scheduler nor a batch size of
DeepSpeed's own has a say. Source: deepspeed.ai/docs/config-json, ZeRO (arXiv 1910.02054).
"""

from __future__ import annotations

from typing import Any

from train.recipe import Recipe

__all__ = ["ADAM_BETAS", "deepspeed_config"]

ADAM_BETAS = (0.9, 0.95)
_BUCKET_ELEMENTS = 20_000_000  # gradients exchanged at once; a worker allocates one such buffer


def deepspeed_config(recipe: Recipe, arithmetic: str) -> dict[str, Any]:
    """DeepSpeed's configuration for `recipe` on `recipe.num_workers` workers, in bfloat16, float16 or float32.

    >>> config = deepspeed_config(Recipe(steps=9, global_batch=8, micro_batch=2, sequence_length=64, learning_rate=1e-3), "bfloat16")
    >>> config["gradient_accumulation_steps"], config["zero_optimization"]["stage"], config["bf16"]["enabled"]
    (2, 2, True)
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": recipe.micro_batch,
        "gradient_accumulation_steps": recipe.micro_steps,
        "gradient_clipping": recipe.clip,
        "optimizer": {
            "type": "AdamW",
            # torch's own AdamW: its fused CPU and CUDA kernels come with the wheel, DeepSpeed's would be compiled on first use
            "params": {
                "lr": recipe.learning_rate,
                "betas": list(ADAM_BETAS),
                "eps": 1e-8,
                "weight_decay": 0.0,
                "torch_adam": True,
                "fused": True,
            },
        },
        "bf16": {"enabled": arithmetic == "bfloat16"},
        "fp16": {"enabled": arithmetic == "float16"},  # with a loss scale that adapts
        "zero_optimization": _zero(recipe),
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
        "wall_clock_breakdown": False,
    }
    if arithmetic == "bfloat16":
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _zero(recipe: Recipe) -> dict[str, Any]:
    stage = recipe.zero_stage
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": _BUCKET_ELEMENTS, "allgather_bucket_size": _BUCKET_ELEMENTS}
    if stage == 3:
        del zero["allgather_bucket_size"]
        zero |= {"stage3_prefetch_bucket_size": _BUCKET_ELEMENTS, "stage3_max_live_parameters": 10 * _BUCKET_ELEMENTS}
    if recipe.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if recipe.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    return zero
