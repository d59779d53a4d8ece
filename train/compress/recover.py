"""Recovery: a compressed model learns the original's distribution again, in what of it may still move.

Promise: the KL to the original on prompts that recovery does not learn from is measured before and after; options, sizes, zeros and
integers stay as they are (movable.py); it runs on Ray Train's workers (DeepSpeed's ZeRO where there are several and all weights move), and
one that was interrupted goes on from its newest checkpoint. Price: a training run of `steps` steps, and its checkpoints.
Source: LLM-QAT (arXiv 2305.17888) for learning from the original's own completions rather than from data; train/compress/distil_loss.py.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pyarrow import fs as arrow_fs
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.console import say
from cluster.runtime import attached
from cluster.storage import absolute, copy_tree, digest_of, resolve
from train.compress.candidates import Variant
from train.compress.distil_loss import DistilLoss
from train.compress.divergence import Reference
from train.compress.lessons import Lessons
from train.compress.movable import Way, movable, settled
from train.compress.quantize import load_dense
from train.compress.variant_file import read_variants, write_variants
from train.recipe import Recipe

if TYPE_CHECKING:
    from train.workers import Outcome

__all__ = ["RATES", "Recovered", "recipe_of", "recover"]

RATES: Mapping[Way, float] = {"norms": 1e-3, "lora": 3e-3, "full": 3e-4}
"""Peak learning rates of a model of `_WIDTH` (docs/recovery.md has what others gave)."""
_WIDTH = 256
_WIDTH_POWER = 0.78
"""Matrices of wider models move by less, as in train/tuning/config.py; vectors do not care."""
_BATCH = 16
"""Completions per step."""
_MICRO_BATCH = 8
_WARMUP_SHARE = 0.05
_VARIANTS, _WEIGHTS, _FIGURES = "variants.safetensors", "weights.safetensors", "figures.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovered:
    """A compressed model after recovery."""

    variants: Mapping[str, Variant]
    """Module path -> the matrix as it will be stored, of the same option and size as before."""
    weights: Mapping[str, Tensor]
    """Every other parameter that moved, by its name in the model: float32."""
    kl_before: float
    """Nats per token to the original, on completions that recovery did not learn from."""
    kl_after: float
    steps: int

    @property
    def helped(self) -> bool:
        """Whether the model is closer to the original than before."""
        return self.kl_after < self.kl_before

    def apply_to(self, model: Any) -> None:
        """Give `model`, the original in its own type, the parameters that moved; its compressed matrices stay for the export."""
        named = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in self.weights.items():
                named[name].copy_(weight)


def recover(
    source: Path,
    variants: Mapping[str, Variant],
    lessons: Reference,
    judged: Reference,
    *,
    way: Way,
    steps: int,
    folder: str,
    learning_rate: float | None = None,
    num_workers: int = 1,
    seed: int = 0,
) -> Recovered:
    """The model in `source`, its matrices as `variants` say, after `steps` steps on `lessons`; its KL is measured on `judged`.

    `folder`, local or s3://, keeps checkpoints and the result: what is asked for again goes on, or is there already.
    """
    rate = learning_rate or _rate(way, source)
    recipe = recipe_of(way, steps, len(lessons.prompts), learning_rate=rate, num_workers=num_workers, seed=seed)
    plan = {name: variant.option.name for name, variant in sorted(variants.items())}
    key = digest_of([plan, way, lessons.completions, judged.completions, recipe.steps, recipe.learning_rate, seed])
    place = f"{folder}/{way}-{key[:16]}"
    if not _is_there(f"{place}/recovered/{_FIGURES}"):
        _publish(place, "lessons", Lessons.of(lessons).save)
        _publish(place, "judged", Lessons.of(judged).save)
        _publish(place, "plan", lambda scratch: write_variants(scratch / _VARIANTS, variants))
        _train(absolute(str(source)), absolute(place), recipe, way)
    return _read(f"{place}/recovered")


def recipe_of(way: Way, steps: int, available: int, *, learning_rate: float | None = None, num_workers: int = 1, seed: int = 0) -> Recipe:
    """How a recovery of so many steps learns, with `available` completions to learn from."""
    micro = max(1, min(_MICRO_BATCH, _BATCH // num_workers, available))
    return Recipe(
        steps=steps,
        global_batch=max(1, _BATCH // (micro * num_workers)) * micro * num_workers,
        micro_batch=micro,
        sequence_length=1,
        learning_rate=learning_rate or RATES[way],
        weight_decay=0.0,
        warmup_steps=round(_WARMUP_SHARE * steps),
        zero_stage=2 if way == "full" else 0,
        num_workers=num_workers,
        checkpoint_every=50,
        seed=seed,
    )


def _rate(way: Way, source: Path) -> float:
    from transformers import AutoConfig

    width = AutoConfig.from_pretrained(source).get_text_config().hidden_size
    return RATES[way] * (1.0 if way == "norms" else min(1.0, (_WIDTH / width) ** _WIDTH_POWER))


def _train(source: str, place: str, recipe: Recipe, way: Way) -> None:
    from train.workers import Job, train_on_workers

    job = Job(
        label="recover",
        recipe=replace(recipe, sequence_length=_opened(f"{place}/lessons").sequence_length),
        folder=place,
        build=partial(_student, source, place, way, recipe.seed),
        source=partial(_opened, f"{place}/lessons"),
        held_out=partial(_opened, f"{place}/judged"),
        export=partial(_export, source, place, way, recipe.seed),
    )
    with attached():
        outcome = train_on_workers(job)
    _publish(place, "recovered", partial(_write_figures, outcome, f"{place}/trained"))
    say(f"recover: KL to the original on other prompts {outcome.loss_before:.2e} → {outcome.loss_after:.2e} nats per token")


def _student(source: str, place: str, way: Way, seed: int) -> DistilLoss:
    """The compressed model with what is asked of it, equal on every worker."""
    return DistilLoss(_compressed(source, place, way, seed))


def _compressed(source: str, place: str, way: Way, seed: int) -> Any:
    return movable(load_dense(Path(source), torch.float32), read_variants(_local(f"{place}/plan") / _VARIANTS), way, seed=seed)


def _export(source: str, place: str, way: Way, seed: int, _: Any, weights: dict[str, Tensor]) -> None:
    """Write the variants and weights that training ended with."""
    model = _compressed(source, place, way, seed)
    unknown = model.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown, f"trained weights that the model does not have: {unknown[:3]}"
    variants, plain = settled(model, read_variants(_local(f"{place}/plan") / _VARIANTS))

    def save(scratch: Path) -> None:
        write_variants(scratch / _VARIANTS, variants)
        save_file({name: weight.contiguous() for name, weight in plain.items()}, scratch / _WEIGHTS)

    _publish(place, "trained", save)


def _write_figures(outcome: Outcome, trained: str, scratch: Path) -> None:
    copy_tree(trained, str(scratch))
    figures = {"kl_before": outcome.loss_before, "kl_after": outcome.loss_after, "steps": outcome.state.step}
    (scratch / _FIGURES).write_text(json.dumps(figures))


def _read(uri: str) -> Recovered:
    folder = _local(uri)
    figures = json.loads((folder / _FIGURES).read_text())
    return Recovered(variants=read_variants(folder / _VARIANTS), weights=load_file(folder / _WEIGHTS), **figures)


def _publish(place: str, name: str, save: Any) -> None:
    """Let `save` fill a folder, and copy that to `place`/`name`."""
    with tempfile.TemporaryDirectory(prefix="sterna-recover-") as scratch:
        save(Path(scratch))
        copy_tree(scratch, f"{place}/{name}")


def _opened(uri: str) -> Lessons:
    return Lessons.open(_local(uri))


def _local(uri: str) -> Path:
    """A local folder with the contents of `uri`."""
    if "://" not in uri:
        return Path(uri)
    scratch = tempfile.mkdtemp(prefix="sterna-recover-")
    copy_tree(uri, scratch)
    return Path(scratch)


def _is_there(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).type == arrow_fs.FileType.File)
