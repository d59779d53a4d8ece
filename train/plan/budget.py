"""From tokens, a budget and what machines do to what to train: shape, steps, batches, rates, layout, and what will come of it.

Promise: a pure function. Every candidate shape is given all that the budget pays for, and the one with the lowest predicted loss
that fits into memory wins, of nearly equal ones the smallest; with tokens to serve, the one that reaches the same loss for the least
training and serving together. The losing ones are kept, so that the choice can be shown. What cannot be is refused in one line that
says by how much. Price: none. Sources: batch size and learning rate from DeepSeek LLM (Bi et al. 2024, §3), checkpoint interval from
Young (1974), serving from Sardana et al. 2023; the rest are this file's constants, each with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from train.plan.batch import batch_tokens, learning_rate
from train.plan.config import Budget
from train.plan.laws import Interval
from train.plan.layout import Placed, arrange
from train.plan.machine import Machine, checkpoint_seconds, pause_seconds, start_seconds, step_seconds
from train.plan.memory import Footprint
from train.plan.outlook import PRIORS, Data, Outlook
from train.plan.price import UNPRICED, Bill, Market, bill, lost, save_interval_s
from train.plan.shapes import Architecture, ModelShape, candidate_shapes
from train.recipe import Recipe

__all__ = [
    "MAX_EPOCHS",
    "Candidate",
    "Data",
    "consider",
    "decide",
    "possible_shapes",
    "probe_shapes",
    "refuse_unpriced",
    "trained_on",
    "used_share",
]

INDIFFERENT = 1.005  # a smaller model is better than half a percent of predicted loss
MIN_STEPS = 20  # fewer are no training
MAX_EPOCHS = 60.0  # the worth of a pass decays e-fold every 15: the 60th is worth 2 % of the first
LONGEST_S = 10 * 365.25 * 86400.0  # no run lasts longer than its machines
_LEAST_USED = 1e-6  # of a budget: less is a slip of the keyboard
_SECONDS_SPREAD, _CATALOGUE_SPREAD, _BYTES_SPREAD = 0.2, 0.4, 0.15


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A shape with all that the budget pays for, and what is predicted of it."""

    shape: ModelShape
    recipe: Recipe
    loss: Interval
    """Nats per token."""
    seconds: Interval
    """Wall time, start-up included, if nothing happens."""
    tokens: float
    """Trained on, repetitions included, padding not."""
    epochs: float
    flops: float
    memory: Footprint
    host_bytes: float
    """Of host memory beside an accelerator's own, a worker's."""
    step_s: float
    interval_s: float
    """Between checkpoints, as Young has it; the recipe rounds it to steps."""
    pause_s: float
    """For which a checkpoint stops the run."""
    write_s: float
    """Until it is on disk."""
    on_demand: Bill
    spot: Bill

    @property
    def bytes_per_device(self) -> Interval:
        """Peak memory of a worker."""
        return Interval.around(self.memory.total, _BYTES_SPREAD)

    def bill(self, kind: str) -> Bill:
        """On demand or on spot."""
        return self.spot if kind == "spot" else self.on_demand

    def lifetime_flops(self, serve_tokens: float) -> float:
        """Of training and of serving so many tokens, each for a way forward."""
        return self.flops + serve_tokens * self.shape.forward_flops_per_token(self.recipe.sequence_length)


def decide(
    data: Data,
    budget: Budget,
    machine: Machine,
    *,
    max_parameters: float | None = None,
    seed: int = 0,
    architecture: Architecture = "dense",
    outlook: Outlook = PRIORS,
    market: Market = UNPRICED,
) -> tuple[Candidate, list[Candidate]]:
    """The best candidate, and all that were possible, smallest first.

    Raises ValueError, in one line, when no model can be trained within budget and memory.
    """
    if data.num_sequences < machine.num_workers:
        raise ValueError(f"tokens: {data.num_sequences} sequences are too few for {machine.num_workers} workers; tokenize more text")
    refuse_unpriced(budget, market)
    shapes = possible_shapes(data, max_parameters, architecture)
    _refuse_tight_memory(shapes[0], data, machine)
    tried = consider(shapes, data, budget, machine, seed, outlook, market)
    found = [c for c in tried if _fits(c, machine) and c.recipe.steps >= MIN_STEPS]
    if not found:
        raise ValueError(
            f"budget: {budget} is too little; {_least(shapes[0], data, budget, machine, market)} train the smallest model for "
            f"{MIN_STEPS} steps"
        )
    lowest = min(candidate.loss.value for candidate in found)
    best = next(candidate for candidate in found if candidate.loss.value <= lowest * INDIFFERENT)
    _refuse_endless(best, budget, machine)
    _refuse_unusable(best, budget, data, market)
    return best, found


def consider(
    shapes: Iterable[ModelShape],
    data: Data,
    budget: Budget,
    machine: Machine,
    seed: int = 0,
    outlook: Outlook = PRIORS,
    market: Market = UNPRICED,
) -> list[Candidate]:
    """Each shape with what the budget pays for, up to the first two that the budget is clearly too small for."""
    found: list[Candidate] = []
    for shape in shapes:
        found.append(_candidate(shape, data, budget, machine, seed, outlook, market))
        losses = [candidate.loss.value for candidate in found]
        if len(found) > 3 and losses[-1] > losses[-2] > min(losses) * 1.1:
            break
    return found


def trained_on(
    tokens: float, shape: ModelShape, data: Data, machine: Machine, seed: int = 0, *, outlook: Outlook, market: Market
) -> Candidate | None:
    """`shape` trained on so many tokens, whatever that costs; None where it does not fit into memory."""
    positions = tokens / (1 - data.padding_share)
    budget = Budget(flops=positions * shape.train_flops_per_token(data.sequence_length) * (1 + 1e-9))
    made = _candidate(shape, data, budget, machine, seed, outlook, market, up=True)
    return made if _fits(made, machine) else None


def probe_shapes(
    data: Data, budget: Budget, num_workers: int, *, max_parameters: float | None = None, architecture: Architecture = "dense"
) -> list[ModelShape]:
    """The two shapes whose speed is worth measuring: those around the choice that a guessed speed would make."""
    guess = 1e11  # FLOP/s of a worker
    flops = budget.flops or guess * num_workers * (budget.seconds or 0.0)
    shapes = possible_shapes(data, max_parameters, architecture)
    shapes = [shape for shape in shapes if shape.num_parameters < 60e6] or shapes[:1]  # larger ones would not be measured in seconds

    def loss(shape: ModelShape) -> float:
        return PRIORS.loss(shape, max(1.0, flops / shape.train_flops_per_token(data.sequence_length)), data).value

    best = min(range(len(shapes)), key=lambda i: loss(shapes[i]))
    return [shapes[i] for i in sorted({max(0, best - 1), min(len(shapes) - 1, best + 2)})]


def possible_shapes(data: Data, max_parameters: float | None, architecture: Architecture) -> Sequence[ModelShape]:
    """The candidates; ValueError if the limit leaves none."""
    size, length = data.vocab_size, data.sequence_length
    most = None if max_parameters is None else int(max_parameters)
    shapes = list(candidate_shapes(vocab_size=size, max_length=length, max_parameters=most, architecture=architecture))
    if not shapes:
        smallest = next(candidate_shapes(vocab_size=size, max_length=length, architecture=architecture)).num_parameters
        raise ValueError(
            f"max_params: {most:,} are too few: with a vocabulary of {data.vocab_size} the smallest model has {smallest:,} parameters; "
            "allow that many"
        )
    return shapes


def _candidate(
    shape: ModelShape, data: Data, budget: Budget, machine: Machine, seed: int, outlook: Outlook, market: Market, *, up: bool = False
) -> Candidate:
    pause_s, write_s = pause_seconds(shape, machine), checkpoint_seconds(shape, machine)
    interval_s = save_interval_s(pause_s, write_s, machine, market)
    seconds = _seconds(budget, interval_s, machine, market)
    flops_per_token = shape.train_flops_per_token(data.sequence_length)
    affordable = (budget.flops or _guessed_flops(shape, data, seconds, machine)) / flops_per_token  # positions, padding included
    affordable = min(affordable, MAX_EPOCHS * data.num_sequences * data.sequence_length)
    placed = _placed(shape, affordable, data, machine, seed)
    step_s, batch = step_seconds(shape, placed.recipe, machine), placed.recipe.global_batch
    positions = batch * data.sequence_length
    often = max(1, round(interval_s / step_s))
    in_time = (seconds - start_seconds(shape, machine) - 2 * pause_s) / (step_s + pause_s / often)
    wanted = min(affordable / positions if budget.flops else in_time, MAX_EPOCHS * data.num_sequences / batch)
    steps = (math.ceil if up else math.floor)(max(0.0, wanted))
    every = min(often, max(1, math.ceil(steps / 2)))
    tokens, flops = steps * positions * (1 - data.padding_share), steps * positions * flops_per_token
    recipe = replace(
        placed.recipe, steps=max(1, steps), warmup_steps=min(max(1, steps // 10), 2000), checkpoint_every=every,
        learning_rate=learning_rate(flops, shape.hidden_size),
    )  # fmt: skip
    took = start_seconds(shape, machine) + steps * step_s + pause_s * math.ceil(steps / every)
    wall = Interval.around(took, _SECONDS_SPREAD if machine.measured else _CATALOGUE_SPREAD)
    return Candidate(
        shape=shape, recipe=recipe, loss=outlook.loss(shape, max(tokens, 1.0), data), seconds=wall, tokens=tokens,
        epochs=tokens / data.num_tokens, flops=flops, memory=placed.memory, host_bytes=placed.host,
        step_s=step_s, interval_s=interval_s, pause_s=pause_s, write_s=write_s,
        on_demand=bill(wall, interval_s, machine, market, "on-demand"), spot=bill(wall, interval_s, machine, market, "spot"),
    )  # fmt: skip


def _seconds(budget: Budget, interval_s: float, machine: Machine, market: Market) -> float:
    """Undisturbed seconds that a budget of time or money leaves, after the expected losses on its market."""
    share, paid, _ = lost(machine, market, market.kind, interval_s)
    if budget.dollars is None:
        return (budget.seconds or 0.0) / (1 + share)
    return budget.dollars / _per_hour(market) * 3600 / (1 + paid)


def _per_hour(market: Market) -> float:
    assert market.tariff is not None
    return market.tariff.spot if market.kind == "spot" else market.tariff.on_demand


def _guessed_flops(shape: ModelShape, data: Data, seconds: float, machine: Machine) -> float:
    """What the workers compute in that time if nothing else took any: good enough to choose a batch by."""
    rate = machine.throughput.flops_per_second(shape.train_flops_per_token(data.sequence_length))
    return rate * machine.num_workers * max(1.0, seconds - start_seconds(shape, machine))


def _placed(shape: ModelShape, affordable: float, data: Data, machine: Machine, seed: int) -> Placed:
    """Batches, rate and layout for about `affordable` positions."""
    flops = affordable * shape.train_flops_per_token(data.sequence_length)
    wanted = batch_tokens(flops, affordable) / data.sequence_length
    recipe = Recipe(
        steps=1,
        global_batch=machine.num_workers,
        micro_batch=1,
        sequence_length=data.sequence_length,
        learning_rate=1.0,  # follows from the steps, which follow from the batch
        zero_stage=0,
        precision=machine.precision,
        num_workers=machine.num_workers,
        seed=seed,
    )
    return arrange(shape, wanted, recipe, machine, data.num_sequences)


def _fits(candidate: Candidate, machine: Machine) -> bool:
    held = not machine.accelerated or candidate.host_bytes <= machine.host_memory_bytes
    return candidate.memory.total <= machine.memory_bytes and held


def refuse_unpriced(budget: Budget, market: Market) -> None:
    """ValueError for money without a price, and for more time than any run lasts."""
    if budget.dollars is not None and market.tariff is None:
        raise ValueError(
            f"budget: {budget} buys nothing that can be told: nobody has said what this machine costs; give --price-per-hour, "
            "--machines of the catalogue, or a budget of hours or flops"
        )
    if budget.seconds is not None and budget.seconds > LONGEST_S:
        raise ValueError(
            f"budget: {budget} are {budget.seconds / 3.156e7:,.0f} years; at most hours={LONGEST_S / 3600:.0f} are planned for"
        )


def used_share(candidate: Candidate, budget: Budget, market: Market) -> float:
    """How much of the budget it takes: little, where all passes over the text that are of any use cost little."""
    if budget.flops is not None:
        return candidate.flops / budget.flops
    made = candidate.bill(market.kind)
    if budget.dollars is not None:
        assert made.dollars is not None
        return made.dollars.value / budget.dollars
    return made.hours.value * 3600 / (budget.seconds or math.inf)


def _refuse_unusable(best: Candidate, budget: Budget, data: Data, market: Market) -> None:
    share = used_share(best, budget, market)
    if share < _LEAST_USED:
        raise ValueError(
            f"budget: {budget} are {1 / share:.0e} times what {MAX_EPOCHS:.0f} passes over {data.num_tokens:,.0f} tokens can use "
            f"(flops={best.flops:.1e}); tokenize more text, or give less"
        )


def _refuse_endless(best: Candidate, budget: Budget, machine: Machine) -> None:
    years = best.seconds.value / 3.156e7
    if best.seconds.value > LONGEST_S:
        most = best.flops * LONGEST_S / best.seconds.value
        ask = f"flops={most:.1e}" if budget.flops else f"hours={LONGEST_S / 3600:.0f}"
        raise ValueError(f"budget: {budget} would take {machine.name} {years:,.0f} years; give more machines, or at most {ask} (ten years)")


def _refuse_tight_memory(shape: ModelShape, data: Data, machine: Machine) -> None:
    leanest = _placed(shape, 1.0, data, machine, 0)
    if not leanest.fits(machine):
        short = leanest.memory.total - machine.memory_bytes
        raise ValueError(
            f"memory_bytes: {machine.memory_bytes / 2**30:.2f} GiB per worker cannot hold the smallest model ({shape.num_parameters:,} "
            f"parameters), which needs {leanest.memory.total / 2**30:.2f} GiB, {short / 2**30:.2f} more; use fewer workers or larger ones"
        )


def _least(shape: ModelShape, data: Data, budget: Budget, machine: Machine, market: Market) -> str:
    """The smallest budget of the same kind that trains the smallest model at all."""
    if budget.flops:
        smallest = machine.num_workers * data.sequence_length * MIN_STEPS * shape.train_flops_per_token(data.sequence_length)
        return f"flops={smallest:.1e}"
    start_s = start_seconds(shape, machine)
    recipe = _placed(shape, 1.0, data, machine, 0).recipe
    pause_s, write_s = pause_seconds(shape, machine), checkpoint_seconds(shape, machine)
    seconds = start_s + 2 * pause_s + (MIN_STEPS + 1) * step_seconds(shape, recipe, machine) * 1.1
    share, paid, _ = lost(machine, market, market.kind, save_interval_s(pause_s, write_s, machine, market))
    if budget.dollars is not None:
        return f"dollars={_per_hour(market) * seconds * (1 + paid) * 1.1 / 3600:.2g}"
    return f"minutes={math.ceil(seconds * (1 + share) / 6) / 10:g} (start-up alone takes {start_s:.0f} s)"
