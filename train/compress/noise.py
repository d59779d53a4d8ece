"""The noise floor: how far a model's tokens differ from its own when only the arithmetic changes.

Promise: three floors, each measured on the model itself: bfloat16 against float32 (teacher-forced), one sequence at a time against
eight together (decoded), and the decode kernels against the teacher-forced pass. No model can be told from the original below them.
Price: one pass over the completions in bfloat16, and two rounds of greedy decoding for a few prompts.

Where two decodings part, the rest of their texts differs for that reason alone; so what is counted is the hazard: first divergences
per token that was at risk, the estimate of the flip rate that is not fed by its own consequences (Divergent Token Metrics, arXiv
2311.01544, censor in the same way).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Sampling
from train.compress.divergence import Reference, Trace, divergent, first_divergent, judge, make_reference

__all__ = ["Noise", "flips_by_prompt", "hazard", "measure_noise", "share"]

_DECODED = 16
"""Prompts that are decoded anew: each costs its tokens one at a time."""
_TOGETHER = 8
Flips = Sequence[NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """How far the original differs from itself when only the arithmetic changes."""

    flips: float
    """Share of its tokens that the original itself would have written otherwise in bfloat16 than in float32."""
    batch_flips: float
    """First divergences per token between its decoding alone and beside seven others."""
    decode_flips: float
    """Share of the tokens it wrote one by one that its own reading of them in one pass would not have chosen."""
    kl_mean: float
    """Nats per token of KL, bfloat16 against float32."""
    margin: float
    """Nats: 99 % of the positions move their top-2 margin by less than this in bfloat16, and no flip of the other two had a larger one."""
    arithmetic: str
    """What was compared, such as "bfloat16 against float32"."""

    @property
    def floor(self) -> float:
        """The largest of the three shares."""
        return max(self.flips, self.batch_flips, self.decode_flips)


def flips_by_prompt(reference: Reference, traces: Sequence[Trace]) -> list[NDArray[np.bool_]]:
    """Per completion, which tokens are divergent."""
    return [divergent(completion, trace.likeliest) for completion, trace in zip(reference.completions, traces, strict=True)]


def share(flips: Flips) -> float:
    """Divergent tokens among all; 0 of none."""
    total = sum(map(len, flips))
    return sum(int(each.sum()) for each in flips) / total if total else 0.0


def hazard(flips: Flips) -> float:
    """First divergences per token at risk: those up to and with the first divergent one.

    >>> hazard([np.array([False, False, True, True]), np.array([False] * 5)])
    0.125
    """
    observed = [first_divergent(each) for each in flips]
    at_risk = sum(fdt + (not censored) for fdt, censored in observed)
    return sum(not censored for _, censored in observed) / at_risk if at_risk else 0.0


def measure_noise(
    source: Path, engine: EngineConfig, reference: Reference, *, done: Callable[[], object] = lambda: None
) -> tuple[Noise, list[Trace]]:
    """The floors of the model in `source`, and its traces in bfloat16; `reference` is its own in float32. `done` after each pass."""
    coarse = replace(engine, dtype="bfloat16")
    together = Engine.load(source, replace(coarse, max_sequences=_TOGETHER))
    traces = judge(together, reference, done=done)
    prompts, most = [list(p) for p in reference.prompts[:_DECODED]], max(map(len, reference.completions))
    beside = _greedy(together, prompts, most)
    read = make_reference(together, prompts, beside, top=2, done=done)
    company = _apart(_greedy(Engine.load(source, replace(coarse, max_sequences=1, draft="off")), prompts, most), beside)
    decoded = flips_by_prompt(read, read.traces)
    noise = Noise(
        flips=share(flips_by_prompt(reference, traces)),
        batch_flips=hazard(company),
        decode_flips=share(decoded),
        kl_mean=float(np.concatenate([trace.kl for trace in traces]).mean()),
        margin=max(_moved(reference, traces), _widest(read, company, first_only=True), _widest(read, decoded, first_only=False)),
        arithmetic="bfloat16 against float32, 1 against 8 sequences, decoded against teacher-forced",
    )
    return noise, traces


def _greedy(engine: Engine, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    sampling = Sampling(max_tokens=num_tokens, temperature=0.0)
    return [list(completion.tokens) for completion in engine.generate(prompts, sampling)]


def _apart(left: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> list[NDArray[np.bool_]]:
    """Where two decodings of the same prompts differ, as far as both go: texts that end differently differ in the end token."""
    lengths = [min(len(a), len(b)) for a, b in zip(left, right, strict=True)]
    return [divergent(a[:n], np.asarray(b[:n])) for a, b, n in zip(left, right, lengths, strict=True)]


def _moved(reference: Reference, traces: Sequence[Trace]) -> float:
    """What 99 % of the top-2 margins move by at most."""
    moved = np.concatenate([np.abs(a.margins - b.margins) for a, b in zip(reference.traces, traces, strict=True)])
    return float(np.quantile(moved[np.isfinite(moved)], 0.99)) if np.isfinite(moved).any() else 0.0


def _widest(read: Reference, flips: Flips, *, first_only: bool) -> float:
    """The largest top-2 margin at which a token flipped; only each text's first flip where the later ones follow from it."""
    margins = [
        abs(float(trace.margins[at]))
        for trace, each in zip(read.traces, flips, strict=True)
        for at in np.flatnonzero(each)[: 1 if first_only else None]
    ]
    return max(margins, default=0.0)
