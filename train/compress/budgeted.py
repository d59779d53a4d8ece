"""The smallest plan within a budget: what each option would do is scored, the search proposes, held-out prompts have the last word.

Promise: the plan that is returned as kept was tested on held-out prompts, and with 95 % confidence its divergence on fresh prompts is
within the budget, however many plans were tested for that: they are tested from the safest to the boldest, an order fixed by the
search, and the first that fails ends it. Price: every option of every matrix worked out once (4 bytes per weight and option), one
scoring (scores.py), about a dozen joint passes over the search's prompts, and at most four over the held-out ones.
Source: fixed-sequence testing (Maurer et al., 1995), as in "Learn then Test" (arXiv 2110.01052).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cluster.console import progress, say
from cluster.storage import digest_of
from train.compress.calibrate import CompressibleMatrix, Moments, matrices, weight_of
from train.compress.candidates import Variant, degraded
from train.compress.certify import judge_budget, upper_bounds
from train.compress.choose import Choice, row_of
from train.compress.config import CompressConfig
from train.compress.divergence import Reference, Trace
from train.compress.margin import foreseen
from train.compress.noise import flips_by_prompt
from train.compress.options import Option
from train.compress.original import Original
from train.compress.probe import Probe
from train.compress.quantize import load_dense
from train.compress.scores import Score, scores
from train.compress.search import Candidate, Found, Judged, plan_key, search
from train.compress.store import Store

__all__ = ["budgeted", "settled"]

_TESTED = 4
"""Plans that are tested on the held-out prompts at most."""
_PASSES = 14
"""About what a search asks for."""
_SWAPS = 4
Plan = dict[str, str]
Variants = Mapping[str, Mapping[str, Variant]]


def budgeted(config: CompressConfig, source: Path, model: Any, known: Mapping[str, Moments], original: Original, store: Store) -> Choice:
    """The smallest (or fastest) plan for `model`, the one in `source`, that keeps to the budget of `config`, or the best there is."""
    found = {matrix.name: matrix for matrix in matrices(model)}
    variants = _variants(model, found, config.choices, known)
    exact = load_dense(source, torch.float32)
    probe = Probe(exact, original.references["search"])
    candidates = _candidates(config, found, variants, probe)
    key = [digest_of([asdict(original.noise), original.references["search"].completions]), [asdict(c) for c in candidates], config.seed]
    held_out = sum(map(len, original.references["held_out"].completions))
    result = _searched(config, probe, candidates, variants, held_out, store, [*key, held_out])
    plan = _tested(config, Probe(exact, original.references["held_out"]), result, variants)
    taken = {name: variants[name][option] for name, option in plan.items() if option != "keep"}
    rows = [row_of(matrix, taken.get(name), _reason(result, plan, name)) for name, matrix in found.items()]
    return Choice(variants=taken, rows=rows, trail=_trail(result, plan), passes=probe.passes)


def _variants(
    model: Any, found: Mapping[str, CompressibleMatrix], choices: Sequence[Option], known: Mapping[str, Moments]
) -> dict[str, dict[str, Variant]]:
    """Matrix -> option -> what it becomes."""
    made: dict[str, dict[str, Variant]] = {name: {} for name in found}
    with progress("compress: working out the options", len(found) * len(choices), "matrices") as advance:
        for name, matrix in found.items():
            for option in choices:
                if _fits(matrix, option):
                    made[name][option.name] = degraded(weight_of(model, name), option, known.get(name))
                advance()
    return made


def _fits(matrix: CompressibleMatrix, option: Option) -> bool:
    """Whether transformers reads a matrix in that option where it stands: what tokens are looked up in has 8 bits or is kept."""
    return matrix.role in ("linear", "head") or (option.kind == "int" and option.bits == 8 and not option.group_size)


def _candidates(config: CompressConfig, found: Mapping[str, CompressibleMatrix], variants: Variants, probe: Probe) -> list[Candidate]:
    dense = {name: {option: variant.dense for option, variant in each.items()} for name, each in variants.items() if each}
    with progress("compress: scoring the options", len(probe.batches), "batches") as advance:
        scored = scores(probe, dense, seed=config.seed, done=advance)
    time = _timer(config)
    made = []
    for name, matrix in found.items():
        made.append(
            Candidate(matrix=name, option="keep", bytes=matrix.bytes, harm=0.0, seconds=time(Option("keep", "keep"), matrix), reason="kept")
        )
        for option, variant in variants[name].items():
            score: Score = scored[name, option]
            reason = f"predicted from gradients, ± {score.error:.1e}"
            made.append(
                Candidate(
                    matrix=name, option=option, bytes=variant.bytes, harm=score.kl, seconds=time(variant.option, matrix), reason=reason
                )
            )
    return made


def _timer(config: CompressConfig) -> Callable[[Option, CompressibleMatrix], float]:
    """Seconds of a step for one token that a matrix takes, where that is what is made small."""
    if config.objective == "bytes":
        return lambda option, matrix: 0.0
    from train.compress.timing import seconds

    return lambda option, matrix: seconds(option, matrix.rows, matrix.columns)[0]


def _searched(
    config: CompressConfig, probe: Probe, candidates: list[Candidate], variants: Variants, held_out: int, store: Store, key: Any
) -> Found:
    """The search, every judged plan kept as soon as it is judged."""
    known = {plan: Judged(**judged) for plan, judged in store.read("judged", key).items()}
    if known:
        say(f"compress: going on with {len(known)} plans that were judged before")
    with progress("compress: searching", _PASSES, "plans") as advance:

        def judged(plan: Plan) -> Judged:
            found = _judged(probe.reference, probe.traces(_weights(plan, variants)), held_out)
            advance(note=", ".join(f"{name} {found.figures[name]:.3g}" for name in config.bounds))
            known[plan_key(plan)] = found
            store.write("judged", key, {each: asdict(of) for each, of in known.items()})
            return found

        return search(candidates, judged, config.bounds, objective=config.objective, swaps=_SWAPS, known=known)


def _weights(plan: Mapping[str, str], variants: Variants) -> dict[str, torch.Tensor]:
    return {name: variants[name][option].dense for name, option in plan.items() if option != "keep"}


def _judged(reference: Reference, traces: Sequence[Trace], held_out: int) -> Judged:
    """The figures on the search's prompts, and what the certificate's bounds on `held_out` other tokens will stay below."""
    per_prompt = {
        "flips": [float(each.sum()) for each in flips_by_prompt(reference, traces)],
        "kl": [float(trace.kl.sum()) for trace in traces],
    }
    lengths = [len(completion) for completion in reference.completions]
    return Judged(
        figures={name: sum(sums) / sum(lengths) for name, sums in per_prompt.items()},
        bounds={name: foreseen(sums, lengths, held_out, counts=name == "flips") for name, sums in per_prompt.items()},
    )


def _tested(config: CompressConfig, probe: Probe, result: Found, variants: Variants) -> Plan:
    """The boldest plan that the held-out prompts let pass; the safest one tested if they let none."""
    ladder = _ladder(result)
    with progress("compress: testing on held-out prompts", len(ladder), "plans") as advance:

        def passes(plan: Plan) -> bool:
            traces = probe.traces(_weights(plan, variants))
            advance()
            return judge_budget(upper_bounds(probe.reference, traces, config.seed), config.bounds)

        return ladder[max(settled(ladder, passes) - 1, 0)]


def settled(ladder: Sequence[Any], passes: Callable[[Any], bool]) -> int:
    """How many of `ladder`, from its beginning, pass before the first that does not; what comes after that is not asked.

    >>> settled([1, 2, 5, 3], lambda size: size < 4)
    2
    """
    for count, plan in enumerate(ladder):
        if not passes(plan):
            return count
    return len(ladder)


def _ladder(result: Found) -> list[Plan]:
    """Plans that the search found within the budget, from the safest to the one it chose."""
    plans = {step.key: step for step in result.trail if step.within and step.bytes > result.bytes and step.key}
    safer = sorted(plans.values(), key=lambda step: step.bytes)[: _TESTED - 1]
    return [*(_plan_of(step.key, result.plan) for step in reversed(safer)), result.plan]


def _plan_of(key: str, like: Plan) -> Plan:
    named = dict(entry.rsplit("=", 1) for entry in key.split(",") if entry)
    return {name: named.get(name, "keep") for name in like}


def _reason(result: Found, plan: Plan, name: str) -> str:
    return (
        result.reasons[name] if plan[name] == result.plan[name] else f"{plan[name]}: {result.plan[name]} did not pass on held-out prompts"
    )


def _trail(result: Found, plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "why": step.why,
            "bytes": step.bytes,
            "predicted_kl": step.predicted,
            **step.judged.figures,
            "upper": dict(step.judged.bounds),
            "within": step.within,
            "chosen": _plan_of(step.key, plan) == plan,
        }
        for step in result.trail
    ]
