"""`sterna pretrain`: a model from a plan, or one that is there already, trained with ZeRO on Ray Train's workers.

Promise: the model, steps and data that plan.toml says (or what the command line says instead); an interrupted run goes on
from its newest checkpoint; the result is a Hugging Face folder that AutoModelForCausalLM loads. Price: the checkpoints.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.artifact import Artifact, Draft, finished, open_artifact, publish
from cluster.console import say
from cluster.runtime import attached
from cluster.settings import parse
from cluster.storage import absolute, copy_tree, digest_of
from train.config import PretrainConfig, overridden
from train.continuation import check_base, check_teacher, continued, taught
from train.files import read_whole
from train.plan.document import TABLES
from train.progress.figures import training_figures
from train.recipe import Recipe
from train.sources import Shares, open_shares, sequences_of
from train.unfinished import refuse_to_lose

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from train.workers import Outcome

__all__ = ["pretrain", "trained"]

_STAGE = "pretrain"


def pretrain(config: PretrainConfig) -> Artifact:
    """Train the plan's model, or go on with another, and write it to `config.output`."""
    return trained(config, *_read_plan(config.plan, model=config.model))


def trained(config: PretrainConfig, plan: dict[str, Any], plan_digest: str) -> Artifact:
    """The same for a plan that has been read: its tables, and a digest of them."""
    recipe = parse(Recipe, overridden(plan["train"], config), where=f"{config.plan} [train]")
    if config.min_workers > recipe.num_workers:
        raise ValueError(f"min_workers: is {config.min_workers}, but num_workers is {recipe.num_workers}; it would wait for ever")
    tokens = _tokens(config, plan)
    shares = open_shares(tokens, config.mix)
    inputs = {"plan": plan_digest, "tokens": tokens.digest}
    inputs |= {f"mix.{number}": part.digest for number, (part, _) in enumerate(shares[1:])}
    if "from" in plan["model"]:
        inputs["model"] = check_base(plan["model"]["from"], recipe, tokens)
    else:
        _check_fit(plan, recipe, tokens)
    if config.teacher:
        config, plan = replace(config, teacher=absolute(config.teacher)), {**plan, "predicted": {}}
        inputs["teacher"] = check_teacher(str(config.teacher), plan["model"], recipe, tokens)
    if done := finished(config.output, stage=_STAGE, inputs=inputs, config=config):
        say(f"{config.output}: already done")
        return done
    refuse_to_lose(config.output, stage=_STAGE, inputs=inputs, config=config)
    with publish(config.output, stage=_STAGE, inputs=inputs, config=config) as draft:
        outcome = _train(config, plan, recipe, shares, draft)
        _describe(draft, plan, recipe, shares, outcome, config.teacher)
    return open_artifact(config.output, made_by=_STAGE)


def _train(config: PretrainConfig, plan: dict[str, Any], recipe: Recipe, shares: Shares, draft: Draft) -> Outcome:
    from train.workers import Job, train_on_workers

    tokens = shares[0][0]
    draft.scratch += ["ray", "checkpoints"]
    base = plan["model"].get("from")
    build = partial(continued, base) if base else partial(_build, plan["model"], tokens, recipe.seed)
    job = Job(
        label="pretrain",
        recipe=recipe,
        folder=draft.uri,
        build=partial(taught, build, config.teacher) if config.teacher else build,
        source=partial(sequences_of, shares),
        export=partial(_export, draft.uri, tokens, base, config.save_precision),
        max_failures=config.max_failures,
        min_workers=config.min_workers,
        growth=config.growth,
    )
    with attached():
        return train_on_workers(job)


def _build(table: dict[str, Any], tokens: Artifact, seed: int) -> PreTrainedModel:
    from transformers import AutoTokenizer

    from train.architectures import SpecialTokens, make_config, make_model

    tokenizer = AutoTokenizer.from_pretrained(tokens.local() / "tokenizer")
    return make_model(make_config(table, SpecialTokens.of(tokenizer)), seed=seed)


def _export(uri: str, tokens: Artifact, base: str | None, precision: str, model: Any, weights: dict[str, Tensor]) -> None:
    import tempfile

    import torch

    from train.loss import Objective
    from train.model_folder import open_model, write_model

    tokenizer = open_model(base)[0] if base else tokens.local() / "tokenizer"  # a base may bring a chat template along
    with tempfile.TemporaryDirectory(prefix="sterna-export-") as scratch:
        write_model(
            model.model if isinstance(model, Objective) else model,
            Path(scratch),
            dtype=getattr(torch, precision),
            tokenizer=tokenizer,
            state=weights,
        )
        copy_tree(scratch, uri)


def _describe(draft: Draft, plan: dict[str, Any], recipe: Recipe, shares: Shares, outcome: Outcome, teacher: str | None = None) -> None:
    state, (tokens, share) = outcome.state, shares[0]
    prediction = _prediction(plan) if recipe.steps == plan["train"].get("steps") else {}  # it is of that many steps
    predicted = prediction.get("value")
    loss, rate = state.final_loss(), state.tokens_per_second()
    draft.counts = {
        "steps": state.step,
        "sequences": state.step * recipe.global_batch,
        "target_tokens": sum(r.tokens for r in state.records),
    }
    draft.metrics = {
        "final_loss": loss,
        "predicted_loss": predicted,
        "predicted_loss_interval": [prediction["low"], prediction["high"]] if "low" in prediction and "high" in prediction else None,
        "predicted_loss_error": predicted / loss - 1 if predicted is not None and math.isfinite(loss) else None,
        "tokens_per_second": rate,
        "steps": state.step,
        "train_seconds": sum(r.seconds for r in state.records),
        "epochs": share * state.step * recipe.global_batch / tokens.manifest.metrics["num_sequences"],
        "precision": outcome.precision,
        "zero_stage": recipe.zero_stage,
        "num_workers": outcome.attempts[-1].num_workers,
        "resumed_at": outcome.resumed_at,
        "groups": len(outcome.attempts),
        "steps_done_again": sum(attempt.lost for attempt in outcome.attempts),
        "spikes_undone": len(state.skips),
    }
    last = [state.records[0].step, state.records[-1].step]
    flat = {"predicted": (last, [predicted, predicted])} if predicted is not None else {}
    what = "Pretraining loss" if teacher is None else "KL to the teacher"
    draft.figures = training_figures(what, state, flat)
    expected = f" ({_expected(prediction, loss)})" if prediction else ""
    said = f"loss {loss:.2f}" if teacher is None else f"KL to the teacher {loss:.3f}"
    draft.headline = f"{said} after {state.step:,} steps{expected}, {rate:,.0f} tokens/s"


def _read_plan(uri: str, model: str | None = None) -> tuple[dict[str, Any], str]:
    """(the tables of plan.toml, a digest), from a plan folder or from a file; `model` is to be gone on with instead of the plan's.

    Its [model] table is then, or is in the file, no more than `from`, the model's folder; what was predicted for the plan's own is gone.
    """
    if uri.endswith(".toml"):
        raw = read_whole(uri, wanted="the plan.toml, or the folder, that `sterna plan run` wrote")
        digest = digest_of(raw.decode(errors="replace"))
    else:
        artifact = open_artifact(uri, made_by="plan")
        raw, digest = (artifact.local() / "plan.toml").read_bytes(), artifact.digest
    try:
        plan = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{uri}: not TOML ({error}); write it again with `sterna plan run`") from None
    unknown = [name for name in plan if name not in TABLES]
    if unknown:
        raise ValueError(f"{uri}: nothing reads {unknown[0]}; its tables are {', '.join(TABLES)}")
    if model:
        plan = {**plan, "model": {"from": model}, "predicted": {}}
    for name in ("model", "train"):
        if not isinstance(plan.get(name), dict):
            raise ValueError(f"{uri}: has no [{name}] table; `sterna plan run` writes one")
    if "from" in plan["model"]:
        if list(plan["model"]) != ["from"] or not isinstance(plan["model"]["from"], str) or not plan["model"]["from"]:
            raise ValueError(f"{uri} [model]: from is a model folder and stands alone: a shape, or where to go on")
        plan["model"]["from"] = absolute(plan["model"]["from"])  # workers stand elsewhere
    _prediction(plan, uri)
    return plan, digest


def _prediction(plan: dict[str, Any], uri: str = "plan") -> dict[str, float]:
    """The loss that the plan expects: its value, and low and high where it says them; empty if it expects none.

    Raises ValueError where one is no number.
    """
    found: Any = plan
    for key in ("predicted", "loss"):
        found = found.get(key, {}) if isinstance(found, dict) else None
    wrong = ["value"]
    if isinstance(found, dict):
        wrong = [name for name in ("value", "low", "high") if not _is_number(found.get(name, 0.0))]
    if wrong:
        raise ValueError(f"{uri}: {wrong[0]} in [predicted.loss] must be a number; or leave [predicted] out")
    return {name: float(found[name]) for name in ("value", "low", "high") if name in found} if "value" in found else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _expected(prediction: dict[str, float], loss: float) -> str:
    """What was predicted, within what, and how far that is from what came.

    >>> _expected({"value": 4.4, "low": 3.7, "high": 5.2}, 4.0)
    'predicted 4.40, 3.70 to 5.20: 10.0 % above'
    """
    within = f", {prediction['low']:.2f} to {prediction['high']:.2f}" if {"low", "high"} <= set(prediction) else ""
    error = prediction["value"] / loss - 1
    return f"predicted {prediction['value']:.2f}{within}: {abs(error):.1%} {'above' if error > 0 else 'below'}".replace("%", " %")


def _tokens(config: PretrainConfig, plan: dict[str, Any]) -> Artifact:
    """The tokens folder that the command line names, else the plan."""
    if config.tokens:
        return open_artifact(config.tokens, made_by="tokenize")
    named = plan["train"].get("tokens")
    if not named:
        raise ValueError(f"{config.plan}: [train] names no tokens; give --tokens FOLDER")
    if not isinstance(named, str):
        raise ValueError(f"{config.plan} [train] tokens: is {named!r}; give one folder; further ones are for --mix FOLDER=SHARE")
    try:
        return open_artifact(named, made_by="tokenize")
    except ValueError as error:
        raise ValueError(f"{config.plan} [train] tokens: {error}; or give --tokens FOLDER") from None


def _check_fit(plan: dict[str, Any], recipe: Recipe, tokens: Artifact) -> None:
    """That the plan is one for these tokens."""
    from train.plan.shapes import ModelShape

    shape = ModelShape.from_table(plan["model"])
    known = tokens.manifest.metrics
    if shape.vocab_size < known["vocab_size"]:
        raise ValueError(
            f"{tokens.uri}: has {known['vocab_size']} token ids, the plan's model {shape.vocab_size}; plan again for these tokens"
        )
    if recipe.sequence_length != known["sequence_length"]:
        raise ValueError(
            f"{tokens.uri}: sequences of {known['sequence_length']} tokens, the plan says {recipe.sequence_length}; plan again"
        )
    if recipe.sequence_length > shape.max_length:
        raise ValueError(f"plan: sequences of {recipe.sequence_length} tokens exceed the model's max_length {shape.max_length}; plan again")
