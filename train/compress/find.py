"""The search on a real model: what every option would make of every matrix, what that would do, and the plan within the budget.

Promise: nothing but the reference's prompts decides; what is returned was judged whole on them, in float32, with the very weights
that will be read back from disk. Price: every option of every matrix once (held as it is stored, or left on disk: see shelf.py), one
pass of gradients for all of them, at most `measured` passes of single changes, and the joint passes of `search.py`, each of which
has its plan's weights in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from cluster.console import progress
from train.compress.calibrate import CompressibleMatrix, Moments, matrices, weight_of
from train.compress.candidates import Variant, degraded
from train.compress.divergence import Reference, Trace
from train.compress.margin import foreseen
from train.compress.noise import flips_by_prompt
from train.compress.options import Option, option
from train.compress.probe import Probe
from train.compress.scores import Score, scores
from train.compress.search import Candidate, Found, Judged, Objective, plan_key, search
from train.compress.shelf import Pair, Shelf

__all__ = ["Judging", "Offer", "Seconds", "allowed", "find", "judged", "offer", "probe_of", "true_harms"]

Seconds = Callable[[Option, int, int], float]
"""(option, rows, columns) -> the time that a step of the engine spends on such a matrix."""
Offers = Callable[[CompressibleMatrix, Option], bool]
_UNSURE = 0.25
"""Relative standard error from which a prediction is measured instead."""
_LARGE = 0.03
"""Nats per token from which a prediction, which is the second-order term, is measured instead."""
_HOPELESS = 0.5
"""Nats per token from which no exact figure is needed."""
_LEAST_KEPT = 1 << 28
"""Bytes that a probe of the smallest model may remember."""


class Judging(Protocol):
    """Who judges plans: a `Probe`, or a `Spread` over a cluster."""

    @property
    def reference(self) -> Reference: ...

    def traces(self, plan: Mapping[str, Tensor], /) -> list[Trace]: ...


@dataclass(frozen=True, slots=True)
class Offer:
    """All that can be chosen from."""

    candidates: list[Candidate]
    variants: dict[str, dict[str, Variant]]
    """Module -> option -> what it becomes; keep is not there."""

    def weights(self, plan: Mapping[str, str]) -> dict[str, Tensor]:
        """Module -> [N, K] float32 of what the plan changes."""
        return {name: self.variants[name][chosen].dense for name, chosen in plan.items() if chosen != "keep"}


def allowed(matrix: CompressibleMatrix, choice: Option) -> bool:
    """Whether every reader takes the option for the matrix: of an embedding, whose rows are looked up, transformers reads 8 bits only."""
    return matrix.role in ("linear", "head") or (choice.kind == "int" and choice.bits == 8)


def offer(
    model: Any,
    probe: Probe,
    options: Sequence[Option],
    known: Mapping[str, Moments],
    *,
    seconds: Seconds | None = None,
    offers: Offers = allowed,
    measured: int = 12,
    draws: int = 2,
    seed: int = 0,
    shelf: Shelf | None = None,
) -> Offer:
    """Every option of every matrix of `model` (in its own type; `probe` has it in float32) with its bytes, time and harm.

    `offers` says which option may be had for which matrix, besides keeping it; `shelf` keeps what is worked out.
    """
    found, shelf = matrices(model), shelf or Shelf()
    variants = _variants(model, [(m, o) for m in found for o in options if o.kind != "keep" and offers(m, o)], known, shelf)
    del known  # of a caller that holds on to it no longer, the largest thing in memory is gone
    predicted = _predicted(probe, variants, draws, seed, shelf)
    doubtful = {(name, o): partial(_alone, name, variants[name][o]) for name, o in _unsure(predicted, variants, measured)}
    alone = true_harms(probe, doubtful, shelf, "alone", "compress: single changes")
    harms = {key: (score.kl, "predicted from gradients") for key, score in predicted.items()}
    harms |= {key: (harm, "measured alone") for key, harm in alone.items()}
    rows = [row for matrix in found for row in _rows(matrix, variants.get(matrix.name, {}), harms, seconds)]
    return Offer(rows, variants)


def _rows(
    matrix: CompressibleMatrix,
    variants: Mapping[str, Variant],
    harms: Mapping[tuple[str, str], tuple[float, str]],
    seconds: Seconds | None,
) -> list[Candidate]:
    """What may become of one matrix: being kept, and its variants."""
    time = partial(seconds, rows=matrix.rows, columns=matrix.columns) if seconds else lambda _: 0.0
    keep = option("keep")
    kept = Candidate(matrix=matrix.name, option=keep.name, bytes=matrix.bytes, harm=0.0, seconds=time(keep), reason="as it was")
    rows = [kept]
    for name, variant in variants.items():
        harm, reason = harms[matrix.name, name]
        rows.append(
            replace(kept, option=name, bytes=matrix.stored_bytes(variant.option), harm=harm, seconds=time(variant.option), reason=reason)
        )
    return rows


def _variants(
    model: Any, wanted: Sequence[tuple[CompressibleMatrix, Option]], known: Mapping[str, Moments], shelf: Shelf
) -> dict[str, dict[str, Variant]]:
    made: dict[str, dict[str, Variant]] = {}
    before: list[Moments] = []
    with progress("compress: the options of each matrix", len(wanted), "variants") as advance:
        for matrix, choice in wanted:

            def make(matrix: CompressibleMatrix = matrix, choice: Option = choice) -> Variant:
                seen = known.get(matrix.name)
                for other in [each for each in before if each is not seen]:
                    other.let_go()  # neighbours share theirs, and what is derived of it is several times as large
                before[:] = [seen] if seen else []
                return degraded(weight_of(model, matrix.name), choice, seen)

            made.setdefault(matrix.name, {})[choice.name] = shelf.variant(matrix.name, choice, make)
            advance()
    return made


class _Dense(Mapping[str, Tensor]):
    """Option -> [N, K] float32 of one matrix' variants, made when they are asked for."""

    def __init__(self, variants: Mapping[str, Variant]) -> None:
        self._variants = variants

    def __getitem__(self, name: str) -> Tensor:
        return self._variants[name].dense

    def __iter__(self) -> Iterator[str]:
        return iter(self._variants)

    def __len__(self) -> int:
        return len(self._variants)


def _predicted(probe: Probe, variants: Mapping[str, Mapping[str, Variant]], draws: int, seed: int, shelf: Shelf) -> dict[Pair, Score]:
    """The predictions of all variants."""
    key = [probe.reference.prompts, probe.reference.completions, draws, seed]
    known = {pair: Score(*row) for pair, row in shelf.read("scores", key).items()}
    missing = {
        name: _Dense({chosen: variant for chosen, variant in each.items() if (name, chosen) not in known})
        for name, each in variants.items()
    }
    missing = {name: each for name, each in missing.items() if each}
    if missing:
        with progress("compress: gradients", len(probe.batches), "batches") as advance:
            known |= scores(probe, missing, draws=draws, seed=seed, done=advance)
        shelf.write("scores", key, {pair: [score.kl, score.error] for pair, score in known.items()})
    return {(name, chosen): known[name, chosen] for name, each in variants.items() for chosen in each}


def _unsure(predicted: Mapping[tuple[str, str], Score], variants: Mapping[str, Mapping[str, Variant]], most: int) -> list[Pair]:
    """The predictions that are to be measured, at most so many, the least sure first; those of options that lose anyway are not."""
    doubts = []
    for (name, chosen), score in predicted.items():
        size = variants[name][chosen].bytes
        beaten = any(other.bytes <= size and predicted[name, each].kl < score.kl for each, other in variants[name].items())
        doubt = max(score.error / max(score.kl, 1e-12) / _UNSURE, score.kl / _LARGE)
        if doubt > 1 and not beaten and score.kl < _HOPELESS:
            doubts.append((doubt, (name, chosen)))
    return [key for _, key in sorted(doubts, reverse=True)[:most]]


def _alone(name: str, variant: Variant) -> dict[str, Tensor]:
    return {name: variant.dense}


def true_harms(
    probe: Probe, wanted: Mapping[Pair, Callable[[], Mapping[str, Tensor]]], shelf: Shelf, table: str, doing: str
) -> dict[Pair, float]:
    """The true mean KL of every change of weights that is `wanted`, each alone; `shelf` keeps them in its `table` as they come."""
    key = [probe.reference.prompts, probe.reference.completions]
    found = shelf.read(table, key)
    with progress(doing, len(wanted), "passes") as advance:
        for pair, weights in wanted.items():
            if pair not in found:
                found[pair] = float(np.concatenate([trace.kl for trace in probe.traces(weights())]).mean())
                shelf.write(table, key, found)
            advance()
    return {pair: found[pair] for pair in wanted}


def judged(reference: Reference, traces: Sequence[Trace], held_out: int) -> Judged:
    """What traces of a plan on the search's reference say of it, and of its certificate on `held_out` tokens of other prompts."""
    flips = flips_by_prompt(reference, traces)
    lengths = [len(each) for each in flips]
    sums = {"flips": [float(each.sum()) for each in flips], "kl": [float(trace.kl.sum()) for trace in traces]}
    return Judged(
        {metric: sum(each) / sum(lengths) for metric, each in sums.items()},
        {metric: foreseen(each, lengths, held_out, counts=metric == "flips") for metric, each in sums.items()},
    )


def find(
    offered: Offer,
    probe: Judging,
    budget: Mapping[str, float],
    *,
    held_out: int,
    objective: Objective = "bytes",
    levels: int = 10,
    swaps: int = 4,
    known: Mapping[str, Judged] | None = None,
    told: Callable[[dict[str, Judged]], object] = lambda _: None,
) -> Found:
    """The cheapest plan whose certificate on `held_out` tokens is foreseen to keep to `budget` (metric -> bound).

    `known`: what an interrupted search had judged; `told` is called with all that is known after each new plan, to be kept.
    """
    everything = dict(known or {})
    with progress("compress: joint passes", levels + swaps + 1, "plans at most") as advance:

        def judge(plan: dict[str, str]) -> Judged:
            found = judged(probe.reference, probe.traces(offered.weights(plan)), held_out)
            everything[plan_key(plan)] = found
            told(everything)
            advance()
            return found

        return search(offered.candidates, judge, budget, objective=objective, levels=levels, swaps=swaps, known=everything)


def probe_of(model: Any, reference: Reference) -> Probe:
    """A probe of `model`, which is of any number type and is left alone, in float32; it remembers no more bytes than that takes."""
    exact = copy.deepcopy(model).float()
    return Probe(exact, reference, keep_bytes=max(_LEAST_KEPT, sum(parameter.nbytes for parameter in exact.parameters())))
