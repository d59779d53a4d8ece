"""A plan as plan.toml has it, and as the report shows it.

Promise: `[model]` and `[train]` are what `sterna pretrain` runs; every other table says what was predicted, from what, and by which
terms, so that `sterna plan explain` needs no more than the file. Price: none.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from cluster.artifact import Draft
from cluster.figure import lines, table
from cluster.storage import absolute
from train.plan.budget import MAX_EPOCHS, Candidate
from train.plan.config import Budget, PlanConfig
from train.plan.laws import CHINCHILLA, MUENNIGHOFF_REPETITION, SMALL_RUNS, Interval, priors, worth
from train.plan.machine import Machine
from train.plan.outlook import Data, Outlook
from train.plan.price import Market, failures_per_hour

__all__ = ["TABLES", "Planned", "describe", "document"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A choice, and all that it followed from."""

    config: PlanConfig
    data: Data
    machine: Machine
    market: Market
    outlook: Outlook
    budget: Budget
    best: Candidate
    optimal: Candidate
    """What it would be without serving."""
    candidates: list[Candidate]
    doubled: Candidate | str
    """What twice the budget would choose, or why it cannot be spent."""


TABLES = ("model", "train", "predicted", "memory", "compute", "checkpoints", "law", "machines", "budget", "serving", "measured")
"""Every table that a plan.toml may have; a run reads the first three."""


def document(planned: Planned, measured: dict[str, Any]) -> dict[str, Any]:
    """The tables of plan.toml; `measured` is what was measured of this machine, empty for machines of the catalogue."""
    best, config = planned.best, planned.config
    made = {
        "model": best.shape.table(),
        "train": {"tokens": absolute(config.tokens), **asdict(best.recipe)},
        "predicted": {name: _rounded(interval) for name, interval in _predicted(planned).items()},
        "memory": {name: int(value) for name, value in best.memory.terms().items()} | {"of": int(planned.machine.memory_bytes)},
        "compute": _compute(planned),
        "checkpoints": _checkpoints(planned),
        "law": _law(planned),
        "machines": _machines(planned),
        "budget": {"given": str(planned.budget), "doubled": _doubled(planned)},
    }
    if config.serve_tokens:
        made["serving"] = _serving(planned)
    return made | ({"measured": measured} if measured else {})


def _predicted(planned: Planned) -> dict[str, Interval]:
    best, kind = planned.best, planned.market.kind
    exact = {"tokens": best.tokens, "flops": best.flops}
    found = {"loss": best.loss, "hours": best.bill(kind).hours, "bytes_per_device": best.bytes_per_device}
    found |= {name: Interval(value, value, value) for name, value in exact.items()}
    for name, made in (("on_demand", best.on_demand), ("spot", best.spot)):
        if made.dollars is not None:
            found |= {f"dollars_{name}": made.dollars, f"hours_{name}": made.hours}
    return found


def _compute(planned: Planned) -> dict[str, Any]:
    best, machine = planned.best, planned.machine
    per_token = best.shape.train_flops_per_token(best.recipe.sequence_length)
    return {
        "parameters": best.shape.num_parameters,
        "embedding_parameters": best.shape.num_embedding_parameters,
        "flops_per_token": per_token,
        "worker_flops_per_second": float(f"{machine.throughput.flops_per_second(per_token):.4g}"),
        "throughput": "measured" if machine.measured else "catalogue",
        "step_seconds": float(f"{best.step_s:.4g}"),
        "steps": best.recipe.steps,
        "tokens_per_step": best.recipe.global_batch * best.recipe.sequence_length,
        "unique_tokens": planned.data.num_tokens,
        "epochs": float(f"{best.epochs:.4g}"),
        "most_epochs": MAX_EPOCHS,
        "start_seconds": planned.machine.start_s,
    }


def _checkpoints(planned: Planned) -> dict[str, Any]:
    best = planned.best
    rate = failures_per_hour(planned.machine, planned.market)
    return {
        "interval_seconds": float(f"{best.interval_s:.4g}"),
        "pause_seconds": float(f"{best.pause_s:.4g}"),
        "write_seconds": float(f"{best.write_s:.4g}"),
        "hours_between_unannounced_failures": float(f"{1 / rate:.4g}"),
        "lost_share": float(f"{best.bill(planned.market.kind).lost_share:.4g}"),
        "interruptions": float(f"{best.bill(planned.market.kind).interruptions:.3g}"),
    }


def _law(planned: Planned) -> dict[str, Any]:
    """Which law, its N and D and its coefficients; of the priors both."""
    best, data, outlook = planned.best, planned.data, planned.outlook
    tokens, own = best.tokens, min(best.tokens, data.num_tokens)
    told: dict[str, Any] = {
        "N": outlook.parameters(best.shape),
        "D": tokens,
        "unique": own,
        "D_worth": float(f"{float(worth(tokens, own, MUENNIGHOFF_REPETITION.data)):.6g}"),
        "R_data": MUENNIGHOFF_REPETITION.data,
        "N_includes_embeddings": outlook.law is None or outlook.law.counts_embeddings,
        "uniform_guess": math.log(data.vocab_size),
    }
    if outlook.law is not None:
        fitted = outlook.law.predictor.fitted
        coefficients = fitted.form.table(fitted.theta)
        n_worth, d_worth = outlook.law.worth(told["N"], tokens, own)
        told |= {"N_worth": float(f"{n_worth:.6g}"), "D_worth": float(f"{d_worth:.6g}")}
        told |= {"R_data": coefficients.get("Rd", MUENNIGHOFF_REPETITION.data)}
        told |= {"source": planned.config.law, "formula": fitted.form.formula, "coefficients": coefficients}
        told |= {"embeddings_said": outlook.law.embeddings, "times_beyond_its_runs": float(f"{outlook.beyond(best.shape, best.flops):.3g}")}
        return told
    found = priors(
        parameters=best.shape.num_active_parameters, tokens=tokens, unique=data.num_tokens, vocab_size=data.vocab_size,
        bytes_per_token=data.bytes_per_token, zstd_bits_per_byte=data.zstd_bits_per_byte,
    )  # fmt: skip
    names = ("E", "A", "alpha", "B", "beta")
    laws = {
        name: {key: getattr(law, key) for key in names} | {"loss": value}
        for name, law, value in (("small_runs", SMALL_RUNS, found.small), ("chinchilla", CHINCHILLA, found.large))
    }
    text = {"bytes_per_token": data.bytes_per_token, "zstd_bits_per_byte": data.zstd_bits_per_byte}
    return told | {"source": "priors", "weight_of_chinchilla": found.weight, **text, **laws}


def _machines(planned: Planned) -> dict[str, Any]:
    machine, market, config = planned.machine, planned.market, planned.config
    told: dict[str, Any] = {
        "name": machine.name,
        "measured": machine.measured,
        "num_workers": machine.num_workers,
        "num_machines": machine.num_machines,
        "market": market.kind,
        "failure_hours": machine.failure_hours,
        "preemptions_per_hour": market.rates.preemptions_per_hour,
        "unannounced_share": market.rates.unannounced_share,
    }
    if market.tariff is not None:
        told |= {"on_demand_per_hour": market.tariff.on_demand, "spot_per_hour": market.tariff.spot, "prices": market.tariff.source}
    return told | ({} if machine.measured else {"speed": f"catalogue, not measured ({config.machines})"})


def _doubled(planned: Planned) -> dict[str, Any]:
    other = planned.doubled
    if isinstance(other, str):
        return {"refused": other}
    told: dict[str, Any] = {
        "parameters": other.shape.num_parameters,
        "tokens": other.tokens,
        "epochs": float(f"{other.epochs:.4g}"),
        "loss": _rounded(other.loss),
        "hours": _rounded(other.bill(planned.market.kind).hours),
        "zero_stage": other.recipe.zero_stage,
        "global_batch": other.recipe.global_batch,
        "learning_rate": other.recipe.learning_rate,
    }
    dollars = other.bill(planned.market.kind).dollars
    return told | ({"dollars": _rounded(dollars)} if dollars is not None else {})


def _serving(planned: Planned) -> dict[str, Any]:
    """Arithmetic over the model's life, beside that of the model that training alone would choose."""
    served, best, optimal = planned.config.serve_tokens, planned.best, planned.optimal
    return {
        "tokens": served,
        "training_flops": best.flops,
        "serving_flops": best.lifetime_flops(served) - best.flops,
        "training_over_budget": float(f"{best.flops / optimal.flops:.4g}"),
        "saved_share": float(f"{1 - best.lifetime_flops(served) / optimal.lifetime_flops(served):.4g}"),
        "without_serving": {
            "parameters": optimal.shape.num_parameters,
            "tokens": optimal.tokens,
            "loss": optimal.loss.value,
            "training_flops": optimal.flops,
            "serving_flops": optimal.lifetime_flops(served) - optimal.flops,
        },
    }


def _rounded(interval: Interval) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in interval.table().items()}


def describe(draft: Draft, planned: Planned) -> None:
    """The manifest's counts, metrics, figures and headline."""
    candidates = planned.candidates
    sizes = [candidate.shape.num_parameters for candidate in candidates]
    bounds = {"predicted": "value", "low": "low", "high": "high"}
    curves = {name: (sizes, [getattr(candidate.loss, bound) for candidate in candidates]) for name, bound in bounds.items()}
    title = f"Predicted loss by model size within {planned.budget}"
    draft.counts = {"candidates": len(candidates)}
    draft.metrics = _metrics(planned.best)
    draft.figures = {
        "loss_by_size": lines(title, "parameters", "nats per token", curves, log_x=True),
        "terms": table("What was chosen, and why it fits", ["term", "value"], _terms(planned)),
    }
    draft.headline = _headline(planned)


def _metrics(best: Candidate) -> dict[str, Any]:
    found = {
        "parameters": best.shape.num_parameters,
        "predicted_loss": best.loss.table(),
        "predicted_seconds": best.seconds.table(),
        "predicted_bytes_per_device": best.bytes_per_device.table(),
        "tokens": best.tokens,
        "epochs": best.epochs,
        "flops": best.flops,
    }
    bills = {"on_demand": best.on_demand, "spot": best.spot}
    return found | {f"predicted_dollars_{name}": made.dollars.table() for name, made in bills.items() if made.dollars is not None}


def _headline(planned: Planned) -> str:
    best = planned.best
    step, loss = best.recipe.global_batch * best.recipe.sequence_length, best.loss
    said = (
        f"{_millions(best.shape.num_parameters)} parameters, {best.recipe.steps:,} steps × {step:,} tokens, loss {loss.value:.1f} "
        f"({loss.low:.1f}–{loss.high:.1f}) predicted"
    )
    dollars = best.bill(planned.market.kind).dollars
    if dollars is not None:
        said += f", ${dollars.value:,.2f} {planned.market.kind}"
    if (over := best.flops / planned.optimal.flops) > 1.005:
        said += f", {float(f'{over:.4g}'):.3g} times the budget, for the sake of serving"
    return said + ("" if planned.machine.measured else " (speed from the catalogue, not measured)")


def _terms(planned: Planned) -> list[list[Any]]:
    best, machine, data = planned.best, planned.machine, planned.data
    shape, recipe = best.shape, best.recipe
    per_token = shape.train_flops_per_token(recipe.sequence_length)
    speed = f"{machine.throughput.flops_per_second(per_token) / 1e9:,.0f} GFLOP/s in {machine.precision}"
    rows: list[list[Any]] = [
        ["width × layers, heads (key-value)", f"{shape.hidden_size} × {shape.num_layers}, {shape.num_heads} ({shape.num_kv_heads})"],
        ["parameters, embeddings included", f"{shape.num_parameters:,}"],
        ["FLOPs per token of training", f"{per_token:.3g}"],
        ["one worker sustains", speed + ("" if machine.measured else " (catalogue, not measured)")],
        ["tokens, passes over the text", f"{best.tokens:,.0f}, {best.epochs:.2f}"],
        ["learning rate, warm-up, schedule", f"{recipe.learning_rate:g}, {recipe.warmup_steps} steps, {recipe.schedule}"],
        ["workers × micro-batch × accumulation", f"{recipe.num_workers} × {recipe.micro_batch} × {recipe.micro_steps}"],
        ["ZeRO stage, offload, checkpointed activations", f"{recipe.zero_stage}, {recipe.offload}, {recipe.gradient_checkpointing}"],
        ["split: tensor, sequence", f"{recipe.tensor}, {recipe.sequence}"],
        ["a checkpoint every", f"{recipe.checkpoint_every:,} steps ({best.interval_s:,.0f} s by Young)"],
        ["wall time", f"{best.seconds.value:.0f} s ({best.seconds.low:.0f}–{best.seconds.high:.0f})"],
    ]
    rows += [["how far zstd shrinks the text", f"{data.zstd_bits_per_byte:.2f} bits per byte"]]
    rows += [[f"memory of a worker: {name}", f"{value / 2**20:,.0f} MiB"] for name, value in best.memory.terms().items()]
    return rows


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters < 1e9 else f"{parameters / 1e9:.2f} B"
