"""`sterna plan explain`: why a plan is what it is: its terms, the formulas with the numbers in them, and what twice the budget would buy.

Promise: every number is in plan.toml or follows from what is; nothing is measured or read beside it. Price: none.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.artifact import open_artifact
from train.plan.batch import GOOD_STEPS, NARROW_RATE, batch_tokens, rate_by_compute, rate_by_width
from train.plan.config import ExplainConfig
from train.plan.laws import CHINCHILLA, SMALL_RUNS
from train.plan.price import LONGEST_INTERVAL_S

__all__ = ["Explanation", "plan_explain"]

Tables = Mapping[str, Any]
_EXPLAINED = ("model", "train", "predicted", "memory", "compute", "checkpoints", "law", "machines", "budget")


@dataclass(frozen=True, slots=True)
class Explanation:
    """A plan, table by table, in words."""

    plan: Tables
    sections: Mapping[str, list[str]]

    def summary(self) -> dict[str, Any]:
        """The tables and the words."""
        return {"plan": dict(self.plan), "explained": dict(self.sections)}

    def __str__(self) -> str:
        return "\n".join(line for name, lines in self.sections.items() for line in [f"{name}:", *(f"  {line}" for line in lines)])


def plan_explain(config: ExplainConfig) -> Explanation:
    """Explain the plan folder, or plan.toml, at `config.plan`; ValueError where it is none that `sterna plan run` wrote."""
    plan = _read(config.plan)
    missing = [name for name in _EXPLAINED if not isinstance(plan.get(name), dict)]
    if missing:
        raise ValueError(f"{config.plan}: has no [{missing[0]}] table, so it cannot be explained; write it with `sterna plan run`")
    try:
        sections = {
            "model": _model(plan),
            "loss": _loss(plan),
            "arithmetic": _arithmetic(plan),
            "batch and rate": _batch(plan),
            "time": _time(plan),
            "memory of a worker": _memory(plan),
            "checkpoints": _checkpoints(plan),
            "price": _price(plan),
        } | ({"serving": _serving(plan)} if "serving" in plan else {})
        return Explanation(plan, sections | {"with twice the budget": _doubled(plan)})
    except KeyError as error:
        raise ValueError(f"{config.plan}: lacks {error.args[0]!r}, so it cannot be explained; write it with `sterna plan run`") from None
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{config.plan}: was changed by hand ({error}); write it again with `sterna plan run`") from None


def _read(uri: str) -> Tables:
    try:
        if uri.endswith(".toml"):
            return tomllib.loads(Path(uri).read_text(encoding="utf-8"))
        return tomllib.loads((open_artifact(uri, made_by="plan").local() / "plan.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{uri}: no such file; `sterna plan run` writes a plan.toml") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{uri}: cannot be read as TOML ({error}); write it again with `sterna plan run`") from None


def _model(plan: Tables) -> list[str]:
    model, compute, law = plan["model"], plan["compute"], plan["law"]
    share = compute["embedding_parameters"] / compute["parameters"]
    counted = "includes" if law["N_includes_embeddings"] else "does not include"
    return [
        f"{model['architecture']}, width {model['hidden_size']:,} x {model['num_layers']} layers, vocabulary {model['vocab_size']:,}",
        f"{compute['parameters']:,} parameters, {compute['embedding_parameters']:,} of them ({share:.0%}) embeddings",
        f"N = {law['N']:,.0f}: it {counted} the embeddings, as the law that predicts the loss counts it",
    ]


def _loss(plan: Tables) -> list[str]:
    law, loss = plan["law"], plan["predicted"]["loss"]
    if law["unique"] < law["D"] * 0.999:
        passes = law["D"] / law["unique"]
        lines = [
            f"D = {law['D']:,.0f} tokens are {passes:.2f} passes over {law['unique']:,.0f} and worth "
            f"U (1 + {law['R_data']:.4g} (1 - e^(-({passes:.2f} - 1) / {law['R_data']:.4g}))) = {law['D_worth']:,.0f} fresh ones"
        ]
    else:
        lines = [f"D = {law['D']:,.0f} tokens, none seen twice"]
    lines += _own_law(law) if "formula" in law else _priors(law)
    return [*lines, f"predicted: {_interval(loss)} nats per token, nine times out of ten"]


def _own_law(law: Tables) -> list[str]:
    numbers = ", ".join(f"{name} = {value:.5g}" for name, value in law["coefficients"].items())
    said = {"unsaid": "; the table of runs did not say whether N counts embeddings, so it is taken to"}.get(law["embeddings_said"], "")
    lines = [f"law of {law['source']}: {law['formula']} with {numbers}{said}"]
    found = law["coefficients"]
    if "E" in found:
        if law["N_worth"] < law["N"]:
            lines += [f"so many parameters on text that repeats are worth {law['N_worth']:,.0f}"]
        a, b = found["A"] / law["N_worth"] ** found["alpha"], found["B"] / law["D_worth"] ** found.get("beta", found["alpha"])
        lines += [f"E + model + data = {found['E']:.4g} + {a:.4g} + {b:.4g}"]
    if law["times_beyond_its_runs"] > 1:
        lines += [f"this run is {law['times_beyond_its_runs']:,.3g} times beyond the largest that the law was fitted to"]
    return lines


def _priors(law: Tables) -> list[str]:
    lines = []
    for name, weight in (("small_runs", 1 - law["weight_of_chinchilla"]), ("chinchilla", law["weight_of_chinchilla"])):
        if weight <= 0:
            continue
        c = law[name]
        bytes_per_token = {"small_runs": SMALL_RUNS, "chinchilla": CHINCHILLA}[name].bytes_per_token
        fresh = law["D_worth"] * law["bytes_per_token"] / bytes_per_token
        a, b = c["A"] / law["N"] ** c["alpha"], c["B"] / fresh ** c["beta"]
        other = c["loss"] / (c["E"] + a + b)
        lines.append(
            f"prior {name} (weight {weight:.2f}): E + A/N^alpha + B/D^beta = {c['E']:g} + {c['A']:g}/{law['N']:,.0f}^{c['alpha']:g} + "
            f"{c['B']:g}/{fresh:,.0f}^{c['beta']:g} = {c['E']:.3g} + {a:.3g} + {b:.3g}; times {other:.3g} for this text and tokenizer: "
            f"{c['loss']:.4g}"
        )
        if name == "small_runs":
            guess = law["uniform_guess"]
            lines.append(f"capped by the uniform guess ln V = {guess:.3f}: L^-1.5 = {c['loss']:.4g}^-1.5 + {guess:.3f}^-1.5")
    return lines


def _arithmetic(plan: Tables) -> list[str]:
    compute, train = plan["compute"], plan["train"]
    positions = compute["steps"] * compute["tokens_per_step"]
    return [
        f"positions = steps x global batch x length = {compute['steps']:,} x {train['global_batch']:,} x {train['sequence_length']:,} = "
        f"{positions:,}, {compute['epochs']:.3g} passes over {compute['unique_tokens']:,.0f} tokens (at most {compute['most_epochs']:g})",
        f"C = {compute['flops_per_token']:.4g} FLOPs a token x {positions:,} = {plan['predicted']['flops']['value']:.4g} "
        f"(6 x parameters would be {6 * compute['parameters']:.4g} a token; attention counts, looking up an embedding does not)",
        f"budget: {plan['budget']['given']}",
    ]


def _batch(plan: Tables) -> list[str]:
    train, flops = plan["train"], plan["predicted"]["flops"]["value"]
    best, cap = batch_tokens(flops, math.inf), plan["compute"]["steps"] * plan["compute"]["tokens_per_step"] / GOOD_STEPS
    workers, width = train["num_workers"] // (train["tensor"] * train["sequence"]), plan["model"]["hidden_size"]
    return [
        f"batch: 0.2920 C^0.3271 = {best:,.0f} tokens (DeepSeek), at most a {GOOD_STEPS}th of all, {cap:,.0f}, in whole sequences: "
        f"{train['global_batch']:,} of {train['sequence_length']:,}",
        f"dealt to {workers} x micro-batches of {train['micro_batch']} x {train['global_batch'] // (workers * train['micro_batch'])}",
        f"learning rate: {NARROW_RATE:g} / width {width:,} = {rate_by_width(width):.3g} below 1e14 FLOPs, 0.3118 C^-0.1250 = "
        f"{rate_by_compute(flops):.3g} above 1e17 (DeepSeek), between them by log C: {train['learning_rate']:g}, "
        f"{train['schedule']} after {train['warmup_steps']:,} steps of warm-up",
        f"layout: ZeRO {train['zero_stage']}, offload {train['offload']}, activations "
        f"{'computed again' if train['gradient_checkpointing'] else 'kept'}, tensor {train['tensor']}, sequence {train['sequence']}: "
        "the fewest predicted seconds a token of what fits",
    ]


def _time(plan: Tables) -> list[str]:
    compute, saves, machines, hours = plan["compute"], plan["checkpoints"], plan["machines"], plan["predicted"]["hours"]
    count = math.ceil(compute["steps"] / plan["train"]["checkpoint_every"])
    origin = "measured here" if machines["measured"] else "from the catalogue, not measured"
    return [
        f"{machines['num_workers']} workers, {machines['name']}; each sustains "
        f"{compute['worker_flops_per_second'] / 1e9:,.4g} GFLOP/s ({origin})",
        f"start {compute['start_seconds']:g} s + steps {compute['steps']:,} x {compute['step_seconds']:.4g} s + checkpoints {count} x "
        f"{saves['pause_seconds']:.3g} s, and {saves['lost_share']:.2%} lost to {saves['interruptions']:.2g} interruptions "
        f"({machines['market']})",
        f"predicted: {_interval(hours)} hours",
    ]


def _memory(plan: Tables) -> list[str]:
    terms, parameters = {**plan["memory"]}, plan["compute"]["parameters"]
    there = terms.pop("of")
    lines = [
        f"{name:<14}{value / 2**20:>12,.1f} MiB"
        + (f"   {value / parameters:.3g} bytes a parameter" if name in ("weights", "gradients", "optimizer", "copies") and value else "")
        for name, value in terms.items()
    ]
    total = sum(terms.values())
    return [*lines, f"{'sum':<14}{total / 2**20:>12,.1f} MiB of {there / 2**20:,.0f} ({total / there:.0%})"]


def _checkpoints(plan: Tables) -> list[str]:
    saves, every = plan["checkpoints"], plan["train"]["checkpoint_every"]
    pause, between = saves["pause_seconds"], saves["hours_between_unannounced_failures"]
    young = math.sqrt(2 * pause * between * 3600)
    return [
        f"sqrt(2 x {pause:.3g} s that one pauses the run x {between:,.4g} h between unannounced failures of the cluster) = {young:,.0f} s",
        f"at most {LONGEST_INTERVAL_S:,.0f} s, at least the {saves['write_seconds']:.3g} s that one takes to write: "
        f"{saves['interval_seconds']:,.0f} s; every {every:,} steps, twice in a run at least",
    ]


def _price(plan: Tables) -> list[str]:
    machines, predicted = plan["machines"], plan["predicted"]
    if "on_demand_per_hour" not in machines:
        return ["nobody has said what this machine costs; --price-per-hour says it"]
    lines = [f"prices: {machines['prices']}"]
    for kind, name in (("on demand", "on_demand"), ("spot", "spot")):
        hours, dollars, rate = predicted[f"hours_{name}"], predicted[f"dollars_{name}"], machines[f"{name}_per_hour"]
        lines.append(f"{kind}: {hours['value']:,.4g} h at ${rate:,.4g} an hour: ${_interval(dollars)}")
    return [
        *lines,
        f"spot expects {machines['preemptions_per_hour']:g} preemptions a machine and hour, {machines['unannounced_share']:.0%} of them "
        "unannounced; hours in which a machine is missing are not paid for",
    ]


def _serving(plan: Tables) -> list[str]:
    serving = plan["serving"]
    other = serving["without_serving"]
    return [
        f"training {serving['training_flops']:.4g} + serving {serving['tokens']:.3g} tokens {serving['serving_flops']:.4g} = "
        f"{serving['training_flops'] + serving['serving_flops']:.4g} FLOPs",
        f"best for training alone: {other['parameters']:,} parameters on {other['tokens']:,.0f} tokens: {other['training_flops']:.4g} + "
        f"{other['serving_flops']:.4g} FLOPs for the same loss, {other['loss']:.4g}",
        f"saved over its life: {serving['saved_share']:.1%}; training takes {serving['training_over_budget']:.3g} times the budget",
    ]


def _doubled(plan: Tables) -> list[str]:
    other, now = plan["budget"]["doubled"], plan["predicted"]
    if "refused" in other:
        return [f"it could not be spent: {other['refused']}"]
    loss, size = other["loss"]["value"] - now["loss"]["value"], other["parameters"] / plan["compute"]["parameters"]
    lines = [
        f"{other['parameters']:,} parameters ({size:.3g} times) on {other['tokens']:,.0f} tokens "
        f"({other['tokens'] / now['tokens']['value']:.3g} times, {other['epochs']:.3g} passes), batch {other['global_batch']:,}, "
        f"learning rate {other['learning_rate']:g}, ZeRO {other['zero_stage']}",
        f"loss {_interval(other['loss'])}: {loss:+.3f}; {_interval(other['hours'])} hours",
    ]
    return lines + ([f"${_interval(other['dollars'])}"] if "dollars" in other else [])


def _interval(table: Tables) -> str:
    return f"{table['value']:,.4g} ({table['low']:,.4g} to {table['high']:,.4g})"
