"""From tokens, a budget and measured throughput to what to train: shape, steps, batches, rates, ZeRO stage, and what will come of it.

Promise: a pure function. Every candidate shape is given all that the budget pays for, and the one with the lowest predicted loss
that fits into memory wins, of nearly equal ones the smallest; the losing ones are kept, so that the choice can be shown. What cannot
be is refused in one line that says by how much. Price: none. Sources: batch size and learning rate from DeepSeek LLM (Bi et al.
2024, §3), checkpoint interval from Young (1974); the rest are this file's constants, each with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from train.plan.config import Budget
from train.plan.laws import Interval, predict_loss
from train.plan.machine import FAILURE_EVERY_S, Machine, checkpoint_seconds, start_seconds, step_seconds
from train.plan.memory import Footprint, footprint
from train.plan.shapes import Architecture, ModelShape, candidate_shapes
from train.recipe import Recipe

__all__ = ["Candidate", "Data", "consider", "decide", "probe_shapes"]

INDIFFERENT = 1.005  # a smaller model is better than half a percent of predicted loss
MIN_STEPS = 20  # fewer are no training
GOOD_STEPS = 300  # Adam needs some; small budgets get smaller batches until they have them
MAX_EPOCHS = 60.0  # the worth of a pass decays e-fold every 15: the 60th is worth 2 % of the first
MICRO_TOKENS = 8192  # enough to keep a worker's matrix products wide
_SECONDS_SPREAD, _BYTES_SPREAD = 0.2, 0.15


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What a tokens folder offers."""

    num_sequences: int
    sequence_length: int
    vocab_size: int
    bytes_per_token: float
    zstd_bits_per_byte: float
    """How far zstd (level 19) shrinks the text, a megabyte of it at a time."""
    padding_share: float = 0.0

    @property
    def num_tokens(self) -> float:
        """Tokens that are not padding."""
        return self.num_sequences * self.sequence_length * (1 - self.padding_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A shape with all that the budget pays for, and what is predicted of it."""

    shape: ModelShape
    recipe: Recipe
    loss: Interval
    """Nats per token."""
    seconds: Interval
    """Wall time, start-up included."""
    tokens: float
    """Trained on, repetitions included, padding not."""
    epochs: float
    flops: float
    memory: Footprint

    @property
    def bytes_per_device(self) -> Interval:
        """Peak memory of a worker."""
        return Interval.around(self.memory.total, _BYTES_SPREAD)


def decide(
    data: Data,
    budget: Budget,
    machine: Machine,
    *,
    max_parameters: int | None = None,
    seed: int = 0,
    architecture: Architecture = "dense",
) -> tuple[Candidate, list[Candidate]]:
    """The best candidate, and all that were possible, smallest first.

    Raises ValueError, in one line, when no model can be trained within budget and memory.
    """
    if data.num_sequences < machine.num_workers:
        raise ValueError(f"tokens: {data.num_sequences} sequences are too few for {machine.num_workers} workers; tokenize more text")
    shapes = _shapes(data, max_parameters, architecture)
    _refuse_tight_memory(shapes[0], data, machine)
    found = [
        c for c in consider(shapes, data, budget, machine, seed) if c.memory.total <= machine.memory_bytes and c.recipe.steps >= MIN_STEPS
    ]
    if not found:
        raise ValueError(
            f"budget: {budget} is too little; {_least(shapes[0], data, budget, machine)} train the smallest model for {MIN_STEPS} steps"
        )
    lowest = min(candidate.loss.value for candidate in found)
    return next(candidate for candidate in found if candidate.loss.value <= lowest * INDIFFERENT), found


def consider(shapes: Iterable[ModelShape], data: Data, budget: Budget, machine: Machine, seed: int = 0) -> list[Candidate]:
    """Each shape with what the budget pays for, up to the first two that the budget is clearly too small for."""
    found: list[Candidate] = []
    for shape in shapes:
        found.append(_candidate(shape, data, budget, machine, seed))
        losses = [candidate.loss.value for candidate in found]
        if len(found) > 3 and losses[-1] > losses[-2] > min(losses) * 1.1:
            break
    return found


def probe_shapes(
    data: Data, budget: Budget, num_workers: int, *, max_parameters: int | None = None, architecture: Architecture = "dense"
) -> list[ModelShape]:
    """The two shapes whose speed is worth measuring: those around the choice that a guessed speed would make."""
    guess = 1e11  # FLOP/s of a worker
    flops = budget.flops or guess * num_workers * (budget.seconds or 0.0)
    shapes = _shapes(data, max_parameters, architecture)
    shapes = [shape for shape in shapes if shape.num_parameters < 60e6] or shapes[:1]  # larger ones would not be measured in seconds

    def loss(shape: ModelShape) -> float:
        return _loss(shape, max(1.0, flops / shape.train_flops_per_token(data.sequence_length)), data).value

    best = min(range(len(shapes)), key=lambda i: loss(shapes[i]))
    return [shapes[i] for i in sorted({max(0, best - 1), min(len(shapes) - 1, best + 2)})]


def _shapes(data: Data, max_parameters: int | None, architecture: Architecture) -> list[ModelShape]:
    """The candidates; ValueError if the limit leaves none."""
    size, length = data.vocab_size, data.sequence_length
    shapes = list(candidate_shapes(vocab_size=size, max_length=length, max_parameters=max_parameters, architecture=architecture))
    if not shapes:
        smallest = next(candidate_shapes(vocab_size=size, max_length=length, architecture=architecture)).num_parameters
        raise ValueError(
            f"max_parameters: with a vocabulary of {data.vocab_size} the smallest model has {smallest:,} parameters; allow that many"
        )
    return shapes


def _candidate(shape: ModelShape, data: Data, budget: Budget, machine: Machine, seed: int) -> Candidate:
    flops_per_token = shape.train_flops_per_token(data.sequence_length)
    affordable = (budget.flops or _guessed_flops(shape, data, budget, machine)) / flops_per_token  # positions, padding included
    affordable = min(affordable, MAX_EPOCHS * data.num_sequences * data.sequence_length)
    recipe, memory = _recipe(shape, affordable, data, machine, seed)
    step_s, save_s = step_seconds(shape, recipe, machine), checkpoint_seconds(shape)
    positions = recipe.global_batch * data.sequence_length
    with_saves_s = step_s * (1 + save_s / _checkpoint_interval(shape))
    steps = affordable / positions if budget.flops else ((budget.seconds or 0.0) - start_seconds(shape) - 2 * save_s) / with_saves_s
    steps = math.floor(max(0.0, min(steps, MAX_EPOCHS * data.num_sequences / recipe.global_batch)))
    recipe = _with_steps(recipe, steps, step_s, shape)
    tokens = steps * positions * (1 - data.padding_share)
    seconds = start_seconds(shape) + steps * step_s + save_s * math.ceil(steps / recipe.checkpoint_every)
    return Candidate(
        shape=shape,
        recipe=recipe,
        loss=_loss(shape, max(tokens, 1.0), data),
        seconds=Interval.around(seconds, _SECONDS_SPREAD),
        tokens=tokens,
        epochs=tokens / data.num_tokens,
        flops=steps * positions * flops_per_token,
        memory=memory,
    )


def _loss(shape: ModelShape, tokens: float, data: Data) -> Interval:
    """The dense law, for every architecture; of experts it counts those that a token visits, which is less than they are worth."""
    return predict_loss(
        parameters=shape.num_active_parameters,
        tokens=tokens,
        unique=data.num_tokens,
        vocab_size=data.vocab_size,
        bytes_per_token=data.bytes_per_token,
        zstd_bits_per_byte=data.zstd_bits_per_byte,
    )


def _guessed_flops(shape: ModelShape, data: Data, budget: Budget, machine: Machine) -> float:
    """What the workers compute in the budgeted time if nothing else took any: good enough to choose a batch by."""
    rate = machine.throughput.flops_per_second(shape.train_flops_per_token(data.sequence_length))
    return rate * machine.num_workers * max(1.0, (budget.seconds or 0.0) - start_seconds(shape))


def _recipe(shape: ModelShape, affordable: float, data: Data, machine: Machine, seed: int) -> tuple[Recipe, Footprint]:
    """Batches, rate and ZeRO stage for about `affordable` positions; the footprint of the first layout that fits, else of the leanest."""
    flops = affordable * shape.train_flops_per_token(data.sequence_length)
    batch_tokens = min(0.2920 * flops**0.3271, affordable / GOOD_STEPS)  # DeepSeek's B_opt = 0.2920·C^0.3271
    share = max(1, min(round(batch_tokens / data.sequence_length / machine.num_workers), data.num_sequences // machine.num_workers))
    micro = min(share, max(1, MICRO_TOKENS // data.sequence_length))
    layouts = [(stage, size) for stage in (2, 3) for size in _halvings(micro)]
    for stage, size in layouts:
        memory = footprint(
            shape, zero_stage=stage, num_workers=machine.num_workers, micro_batch=size, sequence_length=data.sequence_length,
            precision=machine.precision,
        )  # fmt: skip
        if memory.total <= machine.memory_bytes:
            break
    recipe = Recipe(
        steps=1,
        global_batch=machine.num_workers * size * (share // size),
        micro_batch=size,
        sequence_length=data.sequence_length,
        learning_rate=float(f"{0.3118 * flops**-0.1250:.3g}"),  # DeepSeek's η_opt = 0.3118·C^-0.1250
        zero_stage=stage,
        precision=machine.precision,
        num_workers=machine.num_workers,
        seed=seed,
    )
    return recipe, memory


def _halvings(size: int) -> list[int]:
    """size, size/2, …, 1.

    >>> _halvings(12)
    [12, 6, 3, 1]
    """
    return [size] if size == 1 else [size, *_halvings(size // 2)]


def _with_steps(recipe: Recipe, steps: int, step_s: float, shape: ModelShape) -> Recipe:
    """The recipe for that many steps: a tenth of them warm up (2,000 at most), and at least two checkpoints."""
    every = min(max(1, round(_checkpoint_interval(shape) / step_s)), max(1, math.ceil(steps / 2)))
    return replace(recipe, steps=max(1, steps), warmup_steps=min(max(1, steps // 10), 2000), checkpoint_every=every)


def _checkpoint_interval(shape: ModelShape) -> float:
    """Seconds between checkpoints that waste least: √(2 · cost of one · time between failures)."""
    return math.sqrt(2 * checkpoint_seconds(shape) * FAILURE_EVERY_S)


def _refuse_tight_memory(shape: ModelShape, data: Data, machine: Machine) -> None:
    leanest = footprint(
        shape,
        zero_stage=3,
        num_workers=machine.num_workers,
        micro_batch=1,
        sequence_length=data.sequence_length,
        precision=machine.precision,
    )
    if leanest.total > machine.memory_bytes:
        raise ValueError(
            f"memory_bytes: {machine.memory_bytes / 2**30:.2f} GiB per worker cannot hold the smallest model ({shape.num_parameters:,} "
            f"parameters), which needs {leanest.total / 2**30:.2f} GiB; use fewer workers or a larger machine"
        )


def _least(shape: ModelShape, data: Data, budget: Budget, machine: Machine) -> str:
    """The smallest budget of the same kind that trains the smallest model at all."""
    if budget.flops:
        smallest = machine.num_workers * data.sequence_length * MIN_STEPS * shape.train_flops_per_token(data.sequence_length)
        return f"flops={smallest:.1e}"
    recipe, _ = _recipe(shape, 1.0, data, machine, 0)
    seconds = start_seconds(shape) + 2 * checkpoint_seconds(shape) + (MIN_STEPS + 1) * step_seconds(shape, recipe, machine) * 1.1
    return f"minutes={math.ceil(seconds / 6) / 10:g} (start-up alone takes {start_seconds(shape):.0f} s)"
