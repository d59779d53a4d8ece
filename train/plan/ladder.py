"""A ladder of small models: which sizes, on how many tokens each, for a stated budget.

Promise: every size is trained on every amount of tokens, so that the law's terms can be told apart; each run has its own schedule, fitted
to its own length, as the law is meant; together they take what the budget allows and no text is seen twice. What is too little is
refused by how much. Price: none. Source: grids of sizes and lengths as in Kaplan et al. 2020 and Hoffmann et al. 2022 (approach 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from train.plan.batch import batch_tokens, learning_rate
from train.plan.config import Budget
from train.plan.machine import CONTENTION, Throughput
from train.plan.memory import Precision
from train.plan.outlook import Data
from train.plan.shapes import Architecture, ModelShape, shape_of_width
from train.recipe import Recipe

__all__ = ["FACTORS", "Rung", "ladder", "ladder_shapes", "seconds_of", "verifier"]

FACTORS = (1.0, 0.5, 0.25)
"""Of the most tokens that a size is trained on."""
TOKENS_PER_PARAMETER = 8.0  # of the largest run; about where sizes and tokens matter alike, for small models on own text
START_S = 20.0  # Ray, and torch in each process
FILLED = 0.85  # of the time, the rest for runs that take longer than measured and for the fit
LEAST_STEPS = 60
HELD_OUT_SEQUENCES = 64
_WIDTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
MICRO_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Rung:
    """One run of the sweep."""

    name: str
    shape: ModelShape
    recipe: Recipe
    flops: float

    @property
    def positions(self) -> int:
        """Tokens that it takes in, padding included."""
        return self.recipe.steps * self.recipe.global_batch * self.recipe.sequence_length


def ladder_shapes(data: Data, sizes: int, architecture: Architecture = "dense") -> list[list[ModelShape]]:
    """Ladders of `sizes` neighbouring widths, the smallest first."""
    widths = [width for width in _WIDTHS if architecture == "dense" or _is_whole_heads(width)]
    shapes = [
        shape_of_width(width, vocab_size=data.vocab_size, max_length=data.sequence_length, architecture=architecture) for width in widths
    ]
    return [shapes[first : first + sizes] for first in range(len(shapes) - sizes + 1)]


def ladder(
    data: Data,
    budget: Budget,
    throughput: Throughput,
    *,
    slots: int,
    sizes: int,
    precision: Precision,
    seed: int = 0,
    architecture: Architecture = "dense",
) -> list[Rung]:
    """The runs, the longest first; ValueError where the budget or the text is too little for any ladder."""

    def of(given: Budget) -> list[Rung]:
        made = []
        for shapes in ladder_shapes(data, sizes, architecture):
            positions = min(_affordable(shapes, data, given, throughput, slots), _fresh(data))
            made.append((abs(math.log(positions / shapes[-1].num_parameters / TOKENS_PER_PARAMETER)), positions, shapes))
        _, positions, shapes = min(made, key=lambda ladder: ladder[0])
        return list(_rungs(shapes, positions, data, precision, seed))

    rungs = of(budget)
    if not _long_enough(rungs):
        raise ValueError(_too_little(budget, data, sizes, of))
    return sorted(rungs, key=lambda rung: -rung.flops)


def _long_enough(rungs: Sequence[Rung]) -> bool:
    return min(rung.recipe.steps for rung in rungs) >= LEAST_STEPS


def _too_little(budget: Budget, data: Data, sizes: int, of: Callable[[Budget], list[Rung]]) -> str:
    """What would be enough: found by asking for more and more."""
    for k in range(1, 200):
        more = budget.times(1.2**k)
        if _long_enough(of(more)):
            minutes = math.ceil((more.seconds or 0.0) / 6) / 10
            enough = f"flops={1.05 * more.flops:.2g}" if more.flops is not None else f"minutes={minutes:g}"
            return f"budget: {budget} is too little for a ladder of {sizes} sizes; {enough} is enough"
    fresh = FACTORS[-1] * _fresh(data) / data.sequence_length
    needed = data.num_tokens * LEAST_STEPS / max(1.0, fresh)
    return (
        f"tokens: {data.num_tokens:,.0f} are too few for a ladder of {sizes} sizes without seeing any twice; some {needed:,.0f} are needed"
    )


def verifier(rungs: Sequence[Rung], data: Data) -> Rung:
    """A model four times the ladder's largest, on the tokens of its largest."""
    largest = max(rungs, key=lambda rung: (rung.shape.num_parameters, rung.positions))
    wanted, architecture = 4 * largest.shape.num_parameters, largest.shape.architecture
    shapes = [
        shape_of_width(width, vocab_size=data.vocab_size, max_length=data.sequence_length, architecture=architecture)
        for width in range(32, 8192, 8)
        if architecture == "dense" or _is_whole_heads(width)
    ]
    possible = [shape for shape in shapes if shape.num_heads == 0 or shape.hidden_size % shape.num_heads == 0]  # or transformers refuses
    shape = min(possible, key=lambda shape: abs(math.log(shape.num_parameters / wanted)))
    precision: Precision = "bfloat16" if largest.recipe.precision == "bfloat16" else "float32"
    return _rung(shape, largest.positions, data, precision, largest.recipe.seed, name="four-times")


def _is_whole_heads(width: int) -> bool:
    """Whether heads of the width's usual size fill it, as some architectures need."""
    return width % (32 if width < 256 else 64 if width < 2048 else 128) == 0


def seconds_of(rungs: Sequence[Rung], throughput: Throughput, slots: int) -> float:
    """Wall time of the runs in so many slots at once, the longest first."""
    free = [0.0] * slots
    for rung in rungs:
        rate = throughput.flops_per_second(rung.shape.train_flops_per_token(rung.recipe.sequence_length))
        free.sort()
        free[0] += rung.flops / rate * (CONTENTION if slots > 1 else 1.0)
    return max(free)


def _rungs(shapes: Sequence[ModelShape], positions: float, data: Data, precision: Precision, seed: int) -> Iterator[Rung]:
    for number, shape in enumerate(shapes):
        for factor in FACTORS:
            yield _rung(shape, positions * factor, data, precision, seed, name=f"size{number}-{factor:g}")


def _rung(shape: ModelShape, positions: float, data: Data, precision: Precision, seed: int, *, name: str) -> Rung:
    length = data.sequence_length
    per_token = shape.train_flops_per_token(length)
    flops = positions * per_token
    batch = max(1, round(batch_tokens(flops, positions) / length))
    passes = math.ceil(batch / max(1, MICRO_TOKENS // length))
    micro = max(1, round(batch / passes))  # as equal as can be: a batch rounded to whole large passes would leap from size to size
    batch = micro * passes
    steps = max(1, round(positions / batch / length))
    recipe = Recipe(
        steps=steps, global_batch=batch, micro_batch=micro, sequence_length=length, warmup_steps=max(1, steps // 10),
        learning_rate=learning_rate(flops, shape.hidden_size), zero_stage=0, precision=precision, num_workers=1, checkpoint_every=steps,
        seed=seed, guard=0.0,  # of one or two sequences a batch, losses leap without anything being wrong
    )  # fmt: skip
    return Rung(name, shape, recipe, steps * batch * length * per_token)


def _fresh(data: Data) -> float:
    """Positions that can be trained on without seeing any twice, beside those held out."""
    return max(1.0, (data.num_sequences - held_out_sequences(data)) * float(data.sequence_length))


def held_out_sequences(data: Data) -> int:
    """Sequences that no run sees: what the losses of all are measured on."""
    return max(1, min(HELD_OUT_SEQUENCES, data.num_sequences // 10))


def _affordable(shapes: Sequence[ModelShape], data: Data, budget: Budget, throughput: Throughput, slots: int) -> float:
    """Most positions a size, if every size is trained on every share of them within the budget."""
    per_token = [shape.train_flops_per_token(data.sequence_length) for shape in shapes]
    if budget.flops is not None:
        return budget.flops / (sum(per_token) * sum(FACTORS))
    seconds = [cost / throughput.flops_per_second(cost) * (CONTENTION if slots > 1 else 1.0) for cost in per_token]
    there = max(1.0, (budget.seconds or 0.0) - START_S) * FILLED
    together = there * slots / (sum(seconds) * sum(FACTORS))
    return min(together, there / max(seconds))
