"""What share of a device's arithmetic the plain loop turns into training: one process, without Ray and without DeepSpeed.

Promise: the loop and the stepper are those of `sterna pretrain` on one worker; MFU counts the model's FLOPs (train/plan/shapes.py), no
recomputation, over the device's peak (train/progress/meter.py). Price: a minute. On a GPU the default is a dense model of 360M
parameters in bfloat16; on a processor give a smaller `--width`.

    python -m benchmarks.mfu --device cuda --json runs/mfu.json
    python -m benchmarks.mfu --device cpu --width 256 --layers 6 --length 256 --micro-batch 4
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from train.architectures import make_config, make_model
from train.corpus import Sequences
from train.loop import run
from train.plain import PlainStepper
from train.plan.shapes import ModelShape
from train.progress.meter import peak_flops
from train.recipe import Recipe
from train.state import State

__all__ = ["measured"]

WARM = 3


def shape_of(width: int, layers: int, length: int) -> ModelShape:
    """A Llama with heads of 64 and a vocabulary of 32,768."""
    return ModelShape(
        architecture="dense", vocab_size=32_768, hidden_size=width, num_layers=layers, num_heads=width // 64, num_kv_heads=width // 64,
        head_dim=64, intermediate_size=round(width * 8 / 3 / 128) * 128, tie_embeddings=True, max_length=length,
    )  # fmt: skip


def measured(shape: ModelShape, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Figures of a run on tokens drawn at random, one document a sequence."""
    tokens = np.random.default_rng(0).integers(4, shape.vocab_size, (recipe.global_batch * 4, recipe.sequence_length), dtype=np.uint16)
    source = Sequences([tokens], [np.ones(tokens.shape, dtype=np.uint16)])
    stepper = PlainStepper(make_model(make_config(shape)), recipe, device)
    peak = peak_flops(device, stepper.precision)
    state = run(stepper, source, recipe, state=State())
    seconds = median(r.seconds for r in state.records[WARM:])
    rate = recipe.global_batch * recipe.sequence_length / seconds
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "parameters": shape.num_parameters,
        "precision": stepper.precision,
        "tokens_per_second": rate,
        "mfu": rate * shape.train_flops_per_token(recipe.sequence_length) / peak,
        "peak_tflops": peak / 1e12,
        "memory_bytes": memory,
        "first_loss": state.records[0].loss,
        "last_loss": state.records[-1].loss,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    recipe = Recipe(
        steps=options.steps, global_batch=options.micro_batch, micro_batch=options.micro_batch, sequence_length=options.length,
        learning_rate=3e-4, num_workers=1, zero_stage=0, precision=options.precision,
    )  # fmt: skip
    found = measured(shape_of(options.width, options.layers, options.length), recipe, torch.device(options.device))
    for name, value in found.items():
        print(f"{name:<20}{value:,.3f}" if isinstance(value, float) else f"{name:<20}{value}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
