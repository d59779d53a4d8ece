"""`sterna compress`: a smaller model folder, and a certificate of what that did to its tokens.

Promise: with a budget, the smallest model found whose divergence on fresh prompts is within it with 95 % confidence, or the best that
was reached and exit code 3; without one, every matrix in the one option. The folder loads in transformers and in our engine;
compression.json and the card say for people what each matrix became and why, and every figure with its interval.
Price: the original's greedy completions and three passes over them; with a budget the search (search.py), whose cost it shows.
Source: Divergent Token Metrics (arXiv 2311.01544); see divergence.py and certify.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.artifact import Artifact, Draft, Unmet, finished, open_artifact, publish
from cluster.console import progress, say
from serve.engine.engine import Engine
from serve.engine.families import read_shape
from serve.engine.text import Tokenizer
from serve.engine.weights import read_config
from train.compress import figures
from train.compress.budgeted import budgeted
from train.compress.card import card, headline, spelt
from train.compress.certify import certify, judge_budget, least_flips_upper
from train.compress.choose import Choice, calibrated, uniform
from train.compress.config import CompressConfig
from train.compress.divergence import Trace, judge
from train.compress.export import Exported, export
from train.compress.original import Original, greedy, losses_of, study
from train.compress.prompts import Probes, prompts_digest, read_probes
from train.compress.quantize import disk_bytes, load_dense
from train.compress.recover import recover
from train.compress.store import Store
from train.model_folder import open_model

__all__ = ["Compressed", "compress"]

_WORK, _RECOVER = "work", "recover"
_TOLD = ("bytes", "bytes_base", "budget", "certificate", "pass")


class Compressed(Artifact):
    """The published folder; its summary has the contract's keys at the top."""

    def summary(self) -> dict[str, Any]:
        """For --json."""
        return {**Artifact.summary(self), **{name: self.manifest.metrics[name] for name in _TOLD}}


def compress(config: CompressConfig) -> Compressed:
    """Compress `config.model` into `config.output` and certify it on held-out prompts.

    Raises ValueError for a folder that is no model, has no tokenizer, is quantised already or cannot be compressed, and when
    there are no usable prompts; Unmet, with the published folder, when the budget cannot be kept to.
    """
    source, digest = open_model(config.model)
    inputs = {"model": digest, "prompts": prompts_digest(config)}
    if done := finished(config.output, stage="compress", inputs=inputs, config=config):
        say(f"{config.output}: already done")
        return _kept(Compressed(done.uri, done.manifest))
    tokenizer = Tokenizer(source)
    context = config.engine.max_length or read_shape(read_config(source), str(source)).max_length
    parts, skipped = read_probes(config, tokenizer, context, _wanted(config))
    model = load_dense(source)
    with publish(config.output, stage="compress", inputs=inputs, config=config) as draft:
        store = Store(Path(config.work) if config.work else draft.dir / _WORK)
        draft.scratch += [_WORK, _RECOVER]
        original = study(source, digest, parts, config.engine, config.completion_tokens, store)
        _warn(config, original)
        choice = _choose(config, model, digest, original, store)
        del model
        for attempt in _attempts(config, source, choice, original, f"{draft.uri}/{_RECOVER}"):
            exported = export(attempt.model, attempt.choice.variants, source, draft.dir, dense=config.export == "dense")
            if exported.why_not:
                say(f"compress: {exported.why_not}")
            if _certify(draft, config, source, attempt, exported, original, parts["held_out"], skipped) is not False:
                break
    made = open_artifact(config.output, made_by="compress")
    return _kept(Compressed(made.uri, made.manifest))


def _wanted(config: CompressConfig) -> dict[str, int]:
    """Prompts for each part that this run has a use for; the held-out ones first, so that they are the same in every run."""
    wanted = {"held_out": config.num_prompts}
    if config.budget or config.recover:
        wanted["search"] = config.search_prompts
    if config.recover:
        wanted["recovery"] = config.recover_prompts
    if config.budget or any(option.needs_moments or option.kind == "lowrank" for option in config.choices):
        wanted["calibration"] = config.calibration_prompts
    return wanted


def _kept(made: Compressed) -> Compressed:
    """`made`, where it keeps to its budget or has none."""
    metrics = made.manifest.metrics
    if metrics["pass"] is False:
        reached = ", ".join(f"{name} {metrics['certificate'][name + '_upper']:.3g}" for name in metrics["budget"])
        share = metrics["bytes"] / metrics["bytes_base"]
        raise Unmet(
            f"budget: {spelt(metrics['budget'])} cannot be kept to on these prompts; the best that was reached is {reached} (with 95 % "
            f"confidence) at {share:.2f} of the bytes, in {made.uri}; raise the budget, or give more prompts",
            made,
        )
    return made


def _warn(config: CompressConfig, original: Original) -> None:
    """Say what can be known of a budget before anything is searched for."""
    bound = config.bounds.get("flips")
    if bound is None:
        return
    held_out = sum(map(len, original.references["held_out"].completions))
    if least_flips_upper(held_out) > bound:
        say(
            f"budget: {held_out:,} held-out tokens cannot show so little as flips={bound:g}, even if none of them differed "
            f"(at least {least_flips_upper(held_out):.2g}); give more prompts or raise --num-prompts"
        )
    elif bound < original.noise.floor:
        say(f"budget: flips={bound:g} is below the numeric noise ({original.noise.floor:.2g}), which the original itself makes in bfloat16")


def _choose(config: CompressConfig, model: Any, digest: str, original: Original, store: Store) -> Choice:
    if config.budget:
        return budgeted(config, model, digest, original, store)
    return uniform(model, config.choices[0], calibrated(model, config.choices, original.calibration), lm_head=config.lm_head)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What may be written."""

    model: Any
    """In its own type, with the parameters that are no compressed matrices as they are to be."""
    choice: Choice
    recovery: Mapping[str, Any] | None = None


def _attempts(config: CompressConfig, source: Path, choice: Choice, original: Original, place: str) -> Iterator[Attempt]:
    """The boldest first: a plan after its recovery, then what was chosen, as it is. (That one was tested before: the order is fixed.)"""
    bold = choice.bolder if config.budget else choice
    if config.recover and bold is not None:
        lessons, judged = (original.references[part] for part in ("recovery", "search"))
        found = recover(
            source, bold.variants, lessons, judged, way=config.recover, steps=config.recover_steps, folder=place,
            num_workers=config.recover_workers, seed=config.seed,
        )  # fmt: skip
        if found.helped:
            model = load_dense(source)
            found.apply_to(model)
            told = {"way": config.recover, "steps": found.steps, "kl_before": found.kl_before, "kl_after": found.kl_after}
            yield Attempt(model, replace(bold, variants=found.variants, passes=choice.passes), told)
        else:
            say("recover: the model did not come closer to the original, and is left as it was")
    yield Attempt(load_dense(source), choice)


def _certify(
    draft: Draft,
    config: CompressConfig,
    source: Path,
    attempt: Attempt,
    exported: Exported,
    original: Original,
    held_out: Probes,
    skipped: int,
) -> bool | None:
    """Judge the folder as it was written, and fill the draft with what was found; whether it keeps to its budget, None without one."""
    choice = attempt.choice
    candidate = Engine.load(draft.dir, replace(config.engine, dtype="float32"))
    reference = original.references["held_out"]
    with progress("compress: the certificate", len(held_out.prompts) + len(held_out.texts), "passes") as advance:
        traces = judge(candidate, reference, done=advance)
        losses = losses_of(candidate, held_out.texts, advance)
    certificate = certify(reference, traces, original.noise, (original.text_losses, losses), seed=config.seed)
    certificate["skipped"] = skipped
    sizes = {"before": dict(disk_bytes(source)), "after": dict(disk_bytes(draft.dir))}
    report = {
        "options": [option.name for option in config.choices],
        "objective": config.objective,
        "bytes": sizes["after"]["total"],
        "bytes_base": sizes["before"]["total"],
        "bytes_by_kind": sizes,
        "budget": config.bounds,
        "certificate": certificate,
        "pass": bool(choice.variants) and judge_budget(certificate, config.bounds) if config.bounds else None,
        "passes": choice.passes,
        "readers": list(exported.readers),
        "recovery": attempt.recovery,
    }
    _fill(draft, config, choice, report)
    draft.figures |= {
        **figures.divergence(_name(config), reference, traces, original.noisy, certificate, original.noise),
        "texts": _texts(candidate, original, traces, config.completion_tokens),
    }
    (draft.dir / "README.md").write_text(card(Path(config.model).name, report, choice.rows))
    (draft.dir / "compression.json").write_text(json.dumps({**report, "plan": choice.rows, "trail": choice.trail}, indent=1) + "\n")
    return bool(report["pass"]) if config.bounds else None


def _fill(draft: Draft, config: CompressConfig, choice: Choice, report: dict[str, Any]) -> None:
    kept = sum(row["option"] == "keep" for row in choice.rows)
    draft.counts = {"matrices": len(choice.rows), "compressed": len(choice.rows) - kept, "kept": kept}
    draft.metrics = report
    draft.headline = headline(report, _name(config))
    draft.figures = {"bytes": figures.bytes_table(report["bytes_by_kind"]), "chosen": figures.chosen(choice.rows)}
    for metric in config.bounds:
        draft.figures[f"frontier_{metric}"] = figures.frontier(_points(choice.trail, metric), metric, config.bounds)


def _name(config: CompressConfig) -> str:
    return "compressed" if config.budget else config.choices[0].name


def _points(trail: Sequence[Mapping[str, Any]], metric: str) -> dict[str, list[tuple[float, float]]]:
    points: dict[str, list[tuple[float, float]]] = {"tried": [], "chosen": []}
    for plan in trail:
        points["chosen" if plan["chosen"] else "tried"].append((plan["bytes"], plan[metric]))
    return points


def _texts(candidate: Engine, original: Original, traces: Sequence[Trace], num_tokens: int) -> Any:
    reference = original.references["held_out"]
    return figures.diffs(reference, traces, lambda prompts: greedy(candidate, prompts, num_tokens), candidate.tokenizer.decode)
