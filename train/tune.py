"""`sterna tune`: one of many ways to tune a model, on answers or on preferences, through the same loop as pretraining.

Promise: the loss on held-out conversations is measured before and after; merged, the result is a model folder like any other,
otherwise an adapter folder. Price: a second copy of the weights while it is written.
Source: train/tuning/config.py names the papers.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.artifact import Artifact, Draft, finished, open_artifact, publish
from cluster.console import say
from cluster.runtime import attached
from cluster.settings import as_dict, parse
from cluster.storage import absolute, content_digest, copy_tree
from train.model_folder import copy_tokenizer, first_line, is_quantised, load_model, open_model, write_model
from train.progress.figures import training_figures
from train.recipe import Recipe
from train.tuning.config import TuneConfig
from train.unfinished import refuse_to_lose

if TYPE_CHECKING:
    from torch import Tensor, nn

    from train.tuning.data import TuningData
    from train.workers import Outcome

__all__ = ["tune"]

_STAGE = "tune"
_WARMUP_SHARE = 0.03
_GUARD = 1e9  # deviations: only a loss that is no number is undone, for one badly ordered pair among well learnt ones is no spike


def tune(config: TuneConfig) -> Artifact:
    """Tune the model on the data and write it, or an adapter to it, to `config.output`."""
    from train.tuning.data import read_data

    config = replace(config, model=absolute(config.model))
    path, digest = open_model(config.model)
    if is_quantised(path):
        raise ValueError(f"{config.model}: its weights are quantised; tune the model that it was made from")
    inputs = {"model": digest} | {f"data.{i}": _digest(uri) for i, uri in enumerate(config.data)}
    if done := finished(config.output, stage=_STAGE, inputs=inputs, config=config):
        say(f"{config.output}: already done")
        return done
    refuse_to_lose(config.output, stage=_STAGE, inputs=inputs, config=config)
    _check_fit(config, path)
    with publish(config.output, stage=_STAGE, inputs=inputs, config=config) as draft:
        data = read_data(config, path)
        recipe = _recipe(config, data, path)
        with attached():
            outcome = _train(config, recipe, data, draft)
        _describe(draft, config, recipe, data, outcome)
    return open_artifact(config.output, made_by=_STAGE)


def _recipe(config: TuneConfig, data: TuningData, model: Path) -> Recipe:
    from transformers import AutoConfig

    steps = config.steps
    if steps is None:
        needed = max(1, math.ceil(config.epochs * len(data.train) / config.global_batch))
        steps = needed if config.max_steps is None else min(needed, config.max_steps)
    shared = (
        "global_batch",
        "micro_batch",
        "weight_decay",
        "precision",
        "num_workers",
        "seed",
        "checkpoint_every",
        "gradient_checkpointing",
    )
    table = {name: value for name, value in as_dict(config).items() if name in shared}
    table |= {"steps": steps, "sequence_length": data.train.sequence_length, "warmup_steps": round(_WARMUP_SHARE * steps)}
    width = AutoConfig.from_pretrained(model).get_text_config().hidden_size
    table |= {"learning_rate": config.peak_learning_rate(width), "zero_stage": config.sharded, "guard": _GUARD}
    return parse(Recipe, table, where="tune")


def _train(config: TuneConfig, recipe: Recipe, data: TuningData, draft: Draft) -> Outcome:
    from train.tuning.data import open_data
    from train.workers import Job, train_on_workers

    draft.scratch += ["ray", "checkpoints", "data"]
    for name, part in (("train", data.train), ("held_out", data.held_out)):
        with tempfile.TemporaryDirectory(prefix="sterna-tune-") as scratch:
            _with_reference(part, config).save(Path(scratch))
            copy_tree(scratch, f"{draft.uri}/data/{name}")
    job = Job(
        label="tune",
        recipe=recipe,
        folder=draft.uri,
        build=partial(_to_train, config, recipe.steps),
        source=partial(open_data, f"{draft.uri}/data/train", config),
        held_out=partial(open_data, f"{draft.uri}/data/held_out", config),
        export=partial(_export, config, recipe.steps, draft.uri),
        max_failures=config.max_failures,
    )
    return train_on_workers(job)


def _with_reference(part: Any, config: TuneConfig) -> Any:
    from train.tuning.reference import with_reference

    return with_reference(part, config.model, config.precision) if config.objective == "preferences" else part


def _check_fit(config: TuneConfig, path: Path) -> None:
    """That the method finds its place in the model, tried on one without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from train.tuning.methods import attach

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{config.model}: not a causal language model that transformers knows ({first_line(error)})") from None
    if config.method != "prefix":  # that begins from keys and values, which a model without weights cannot compute
        with torch.device("meta"):
            attach(model, config, config.steps or 1)


def _build(config: TuneConfig, steps: int) -> nn.Module:
    """The model with what is to be trained of it, equal on every worker."""
    import torch

    from train.tuning.methods import attach

    path, _ = open_model(config.model)
    return attach(load_model(path, torch.float32), config, steps)


def _to_train(config: TuneConfig, steps: int) -> nn.Module:
    """The same with what is asked of it."""
    from train.tuning.methods import objective

    return objective(_build(config, steps), config, steps)


def _export(config: TuneConfig, steps: int, uri: str, _: nn.Module, weights: dict[str, Tensor]) -> None:
    """Write the tuned model, or what was trained alone, from the trained weights (float32, named as in the tuned model)."""
    from transformers import AutoConfig

    from train.tuning.methods import METHODS

    path, _digest = open_model(config.model)
    tuned, method = _build(config, steps), METHODS[config.method]
    unknown = tuned.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown, f"trained weights that the model does not have: {unknown[:3]}"
    with tempfile.TemporaryDirectory(prefix="sterna-export-") as scratch:
        if config.merged:
            assert method.merge is not None
            write_model(method.merge(tuned), Path(scratch), dtype=AutoConfig.from_pretrained(path).dtype, tokenizer=path)
        else:
            assert method.write is not None
            method.write(tuned, Path(scratch))
            copy_tokenizer(path, Path(scratch))
        copy_tree(scratch, uri)


def _describe(draft: Draft, config: TuneConfig, recipe: Recipe, data: TuningData, outcome: Outcome) -> None:
    state = outcome.state
    draft.counts = data.counts | {"steps": state.step}
    draft.metrics = {
        "method": config.method,
        "objective": config.objective,
        "loss_before": outcome.loss_before,
        "loss_after": outcome.loss_after,
        "final_loss": state.final_loss(),
        "learning_rate": recipe.learning_rate,
        "tokens_per_second": state.tokens_per_second(),
        "steps": state.step,
        "train_seconds": sum(r.seconds for r in state.records),
        "num_sequences": len(data.train),
        "precision": outcome.precision,
        "num_workers": outcome.attempts[-1].num_workers,
        "merged": config.merged,
        "resumed_at": outcome.resumed_at,
    }
    held_out = ([0, state.step], [outcome.loss_before, outcome.loss_after])
    title = "Tuning loss (answers only)" if config.objective == "answers" else "Tuning loss (preferences)"
    draft.figures = training_figures(title, state, {"held out": held_out})
    pairs = f"{data.counts['pairs_trained']:,} pairs"
    draft.headline = (
        f"{config.method}: held-out loss {outcome.loss_before:.2f} → {outcome.loss_after:.2f} after {state.step:,} steps on {pairs}"
    )


def _digest(uri: str) -> str:
    """A file's or a corpus's identity; ValueError if it is not there."""
    from train.tuning.data import is_file

    return content_digest(uri) if is_file(uri) else open_artifact(uri, made_by="curate").digest
