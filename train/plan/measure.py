"""How fast this machine trains: a few real steps of a real model, timed.

Promise: the step is `PlainStepper`'s, on your own tokens, with the threads that a worker will have; what the forward and backward
passes take per token and what the optimizer takes per step are told apart. Price: about two seconds a shape, after a first step that
warms up. The machine should be otherwise idle, as it should be when it trains.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from train.architectures import make_config, make_model
from train.corpus import Batch, Cursor, Sequences
from train.plain import PlainStepper
from train.plan.machine import Sample
from train.plan.memory import Precision
from train.plan.shapes import ModelShape
from train.recipe import Recipe

__all__ = ["measure", "threads"]

_TOKENS = 4096  # of a timed micro-batch


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(
    shape: ModelShape, sequences: Sequences, *, precision: Precision, seconds: float = 2.0, device: torch.device | None = None
) -> Sample:
    """Time steps of one and of two micro-batches for about `seconds`; their difference is a micro-batch, the rest the optimizer.

    The fastest of each counts, since other processes only ever add time. Should they still have spoiled a difference, it is
    held to what arithmetic allows: two passes fit into the longer step, and an update costs less than a pass of 4,096 tokens.
    """
    length = sequences.sequence_length
    micro = max(1, min(_TOKENS // length, len(sequences)))
    recipe = Recipe(
        steps=1, global_batch=micro, micro_batch=micro, sequence_length=length, learning_rate=1e-4, num_workers=1, precision=precision
    )
    stepper = PlainStepper(make_model(make_config(shape)), recipe, device)
    batch = sequences.batch(Cursor(0, micro, len(sequences)).indices())
    _timed(stepper, [batch, batch])
    one, two, until = [], [], time.monotonic() + seconds
    while len(one) < 2 or time.monotonic() < until:
        one.append(_timed(stepper, [batch]))
        two.append(_timed(stepper, [batch, batch]))
    pass_s = min(max(min(two) - min(one), min(two) / 3), min(two) / 2)
    return Sample(
        shape=shape,
        flops_per_token=shape.train_flops_per_token(length),
        seconds_per_token=pass_s / np.prod(batch.input_ids.shape).item(),
        update_seconds=max(0.0, min(one) - pass_s),
    )


def _timed(stepper: PlainStepper, batches: Sequence[Batch]) -> float:
    started = time.perf_counter()
    stepper.step(batches, sum(batch.num_labels for batch in batches), 1e-4)  # returns the loss, so the device has finished
    return time.perf_counter() - started
