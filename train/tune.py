"""`sterna tune`: LoRA on instruction data, its losses on the answers only, through the same loop as pretraining.

Promise: the loss on held-out pairs is measured before and after; merged, the result is a model folder like any other,
otherwise a peft adapter folder. Price: a second copy of the weights while merging.
Source: LoRA (arXiv 2106.09685), by peft.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.artifact import Artifact, Draft, finished, open_artifact, publish
from cluster.console import say
from cluster.runtime import attached
from cluster.settings import as_dict, parse
from cluster.storage import absolute, content_digest, copy_tree, resolve
from train.config import TuneConfig
from train.model_folder import copy_tokenizer, is_quantised, load_model, open_model, write_model
from train.pretrain import loss_curve
from train.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from train.corpus import Sequences
    from train.workers import Outcome

__all__ = ["tune"]

_STAGE = "tune"
_DEFAULT_LENGTH = 512
_WARMUP_SHARE = 0.03


@dataclass(frozen=True, slots=True)
class _Data:
    """What was read: packed training and held-out pairs, and the bookkeeping."""

    train: Sequences
    held_out: Sequences
    counts: dict[str, float]


def tune(config: TuneConfig) -> Artifact:
    """Tune the model on the data and write it to `config.output`."""
    config = replace(config, model=absolute(config.model))
    path, digest = open_model(config.model)
    if is_quantised(path):
        raise ValueError(f"{config.model}: its weights are quantised; tune the model that it was made from")
    inputs = {"model": digest} | {f"data.{i}": _digest(uri) for i, uri in enumerate(config.data)}
    if done := finished(config.output, stage=_STAGE, inputs=inputs, config=config):
        say(f"{config.output}: already done")
        return done
    with publish(config.output, stage=_STAGE, inputs=inputs, config=config) as draft:
        data = _read(config, path)
        recipe = _recipe(config, data.train)
        outcome = _train(config, recipe, data, draft)
        _describe(draft, config, recipe, data, outcome)
    return open_artifact(config.output, made_by=_STAGE)


def _read(config: TuneConfig, model: Path) -> _Data:
    from transformers import AutoConfig, AutoTokenizer

    from train.conversations import encode, from_corpus, from_jsonl, split

    tokenizer = AutoTokenizer.from_pretrained(model)
    if not tokenizer.chat_template:
        raise ValueError(f"{config.model}: its tokenizer has no chat template; add one as chat_template in tokenizer_config.json")
    context = getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", None) or _DEFAULT_LENGTH
    length = config.max_length or min(context, _DEFAULT_LENGTH)
    if length > context:
        raise ValueError(f"max_length: {length} tokens exceed the model's context of {context}")
    if config.targets:
        _check_targets(config, model)
    read = [from_jsonl(uri) if _is_file(uri) else from_corpus(uri, config.max_pairs) for uri in config.data]
    found = [conversation for part in read for conversation in part.found]
    dropped = sum((part.dropped for part in read), Counter[str]())
    train, held_out = split(found, config.max_pairs, config.held_out)
    packed, too_long = encode(train, tokenizer, length)
    judged, also_too_long = encode(held_out, tokenizer, length)
    if packed is None or judged is None:
        raise ValueError(f"data: no pair fits into {length} tokens; raise --max-length or give shorter conversations")
    aside = too_long + also_too_long
    counts: dict[str, float] = {"pairs_in": len(found) + dropped.total(), "pairs_unused": len(found) - len(train) - len(held_out)}
    counts |= {"pairs_trained": len(train) - too_long.total(), "pairs_held_out": len(held_out) - also_too_long.total()}
    counts |= {f"dropped.{reason}": number for reason, number in sorted((dropped + aside).items())}
    return _Data(packed, judged, counts)


def _recipe(config: TuneConfig, data: Sequences) -> Recipe:
    steps = config.steps or max(1, math.ceil(config.epochs * len(data) / config.global_batch))
    if config.steps is None and config.max_steps is not None:
        steps = min(steps, config.max_steps)
    shared = ("global_batch", "micro_batch", "learning_rate", "weight_decay", "zero_stage", "precision", "num_workers", "seed")
    table = {name: value for name, value in as_dict(config).items() if name in (*shared, "checkpoint_every")}
    table |= {"steps": steps, "sequence_length": data.sequence_length, "warmup_steps": round(_WARMUP_SHARE * steps)}
    return parse(Recipe, table, where="tune")


def _train(config: TuneConfig, recipe: Recipe, data: _Data, draft: Draft) -> Outcome:
    from train.workers import Job, train_on_workers

    draft.scratch += ["ray", "checkpoints", "data"]
    for name, part in (("train", data.train), ("held_out", data.held_out)):
        with tempfile.TemporaryDirectory(prefix="sterna-tune-") as scratch:
            part.save(Path(scratch))
            copy_tree(scratch, f"{draft.uri}/data/{name}")
    job = Job(
        label="tune",
        recipe=recipe,
        folder=draft.uri,
        build=partial(_build, config),
        source=partial(_source, f"{draft.uri}/data/train"),
        held_out=partial(_source, f"{draft.uri}/data/held_out"),
        export=partial(_export, config, draft.uri),
        max_failures=config.max_failures,
    )
    with attached():
        return train_on_workers(job)


def _check_targets(config: TuneConfig, path: Path) -> None:
    """That the modules to adapt exist, on a model without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        _adapted(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path)), config)


def _build(config: TuneConfig) -> Any:
    """The model with fresh LoRA updates (which start at zero effect), frozen but for them."""
    import torch

    path, _ = open_model(config.model)
    model = load_model(path, torch.float32)
    torch.manual_seed(config.seed)
    return _adapted(model, config)


def _adapted(model: PreTrainedModel, config: TuneConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise ValueError(f"targets: {' '.join(config.targets)}: {str(error).splitlines()[0]}") from None


def _source(uri: str) -> Sequences:
    from train.corpus import Sequences

    if "://" not in uri:
        return Sequences.open(Path(uri))
    local = Path(tempfile.mkdtemp(prefix="sterna-tune-"))
    copy_tree(uri, str(local))
    return Sequences.open(local)


def _export(config: TuneConfig, uri: str, _: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Write the tuned model, or the adapter alone, from the trained weights (float32, named as in the peft model)."""
    from transformers import AutoConfig

    path, _digest = open_model(config.model)
    tuned = _build(config)
    unknown = tuned.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown, f"trained weights that the model does not have: {unknown[:3]}"
    with tempfile.TemporaryDirectory(prefix="sterna-export-") as scratch:
        if config.merge:
            dtype = AutoConfig.from_pretrained(path).dtype
            write_model(tuned.merge_and_unload(), Path(scratch), dtype=dtype, tokenizer=path)
        else:
            tuned.save_pretrained(scratch)
            copy_tokenizer(path, Path(scratch))
        copy_tree(scratch, uri)


def _describe(draft: Draft, config: TuneConfig, recipe: Recipe, data: _Data, outcome: Outcome) -> None:
    state = outcome.state
    draft.counts = data.counts | {"steps": state.step}
    draft.metrics = {
        "loss_before": outcome.loss_before,
        "loss_after": outcome.loss_after,
        "final_loss": state.final_loss(),
        "tokens_per_second": state.tokens_per_second(),
        "steps": state.step,
        "train_seconds": sum(r.seconds for r in state.records),
        "num_sequences": len(data.train),
        "precision": outcome.precision,
        "num_workers": recipe.num_workers,
        "merged": config.merge,
        "resumed_at": outcome.resumed_at,
    }
    steps = [r.step for r in state.records]
    held_out = ([0, steps[-1]], [outcome.loss_before, outcome.loss_after])
    draft.figures = {"loss": loss_curve("Tuning loss (answers only)", steps, [r.loss for r in state.records], {"held out": held_out})}
    pairs = f"{data.counts['pairs_trained']:,} pairs"
    draft.headline = f"held-out loss {outcome.loss_before:.2f} → {outcome.loss_after:.2f} after {state.step:,} steps on {pairs}"


def _is_file(uri: str) -> bool:
    from pyarrow import fs as arrow_fs

    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type != arrow_fs.FileType.Directory


def _digest(uri: str) -> str:
    """A file's or a corpus's identity; ValueError if it is not there."""
    return content_digest(uri) if _is_file(uri) else open_artifact(uri, made_by="curate").digest
