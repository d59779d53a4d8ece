"""Divergent Token Metrics: how a changed model's tokens differ from the original's.

Promise: the original's own greedy completions are made once; a candidate is then judged by one teacher-forced pass over
them, token by token. Price: one forward pass per prompt and candidate; the original's 512 likeliest tokens per position are kept.
Source: "Divergent Token Metrics" (arXiv 2311.01544); survival with censoring is Kaplan and Meier's (1958).

Let y = y_1 … y_N be the original's greedy completion of a prompt, and t_i the candidate's likeliest token given the prompt
and y_<i. Position i is *divergent* (a flip) when t_i ≠ y_i.
* SDT, "flips": the share of divergent positions.
* FDT: how many tokens agree before the first divergent one; N, censored, when none diverges. Up to there the candidate's own
  greedy completion has the same tokens as y, so what it is given is what it would have written: the teacher-forced FDT
  *is* the free-running FDT, exactly where both passes compute with the same numbers (tested in float64).
* Margin-aware flips ignore the positions where the original's two likeliest tokens are closer than the numeric noise: there the
  original would not reproduce its own choice on another kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = [
    "Reference",
    "Scorer",
    "Trace",
    "divergent",
    "first_divergent",
    "judge",
    "make_reference",
    "survival",
    "survival_quantile",
    "text_losses",
]

TOP = 512
"""Likeliest tokens of the original that are kept per position; the rest is one bucket, so KL is exact up to its inner shape."""

Floats = NDArray[np.float64]
Tokens = Sequence[int]


class Scorer(Protocol):
    """A model that scores a list of tokens in one pass: our Engine, or anything like it."""

    def logits(self, tokens: list[int], /) -> torch.Tensor:
        """Logits [len(tokens), vocabulary]: row i is about the token after tokens[i]."""
        ...


@dataclass(frozen=True, slots=True)
class Trace:
    """One completion as a model sees it, teacher-forced: an array entry per token of the completion."""

    likeliest: NDArray[np.int64]
    """The model's own choice at each position."""
    losses: Floats
    """Nats: minus the log-probability of the completion's token."""
    margins: Floats
    """Log-probability of the original's likeliest token minus that of its second; negative where this model prefers the second."""
    kl: Floats
    """KL(original ‖ this model) in nats over the original's top tokens and the rest as one; 0 for the original itself."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The original on its own completions: all that is needed to judge a candidate."""

    prompts: tuple[tuple[int, ...], ...]
    completions: tuple[tuple[int, ...], ...]
    traces: tuple[Trace, ...]
    """The original's own, teacher-forced."""
    top_ids: tuple[NDArray[np.int32], ...]
    """Per prompt [N, k]: the original's k likeliest tokens, likeliest first."""
    top_logprobs: tuple[Floats, ...]


def divergent(completion: Tokens, likeliest: Tokens | NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which positions of `completion` a model with these likeliest tokens would have written otherwise.

    >>> divergent([5, 7, 7, 2], [5, 9, 7, 3]).tolist()
    [False, True, False, True]
    """
    assert len(completion) == len(likeliest)
    return np.asarray(completion) != np.asarray(likeliest)


def first_divergent(flips: NDArray[np.bool_]) -> tuple[int, bool]:
    """(FDT, censored): tokens that agree before the first divergent one; all of them, censored, when none diverges.

    A worked example. The original wrote `for i in range ( n ) :`, the candidate prefers `len` to `n` and nothing else:
    the share of divergent tokens is 1 in 8, and five tokens agree first.

    >>> flips = divergent(["for", "i", "in", "range", "(", "n", ")", ":"], ["for", "i", "in", "range", "(", "len", ")", ":"])
    >>> float(flips.mean()), first_divergent(flips)
    (0.125, (5, False))
    >>> first_divergent(divergent([1, 2, 3], [1, 2, 3]))
    (3, True)
    """
    where = np.flatnonzero(flips)
    return (int(where[0]), False) if len(where) else (len(flips), True)


def survival(observed: Sequence[tuple[int, bool]]) -> Floats:
    """Kaplan–Meier over (FDT, censored) pairs: S[t] = share of completions that agree for more than t tokens, t = 0, 1, ….

    Completions end at different lengths, so one that never diverged leaves the risk set at its end instead of counting as an
    agreement beyond it. At t a completion is at risk when its first t tokens agree and it has a token after them.

    >>> survival([(1, False), (2, True), (2, False), (4, True)]).tolist()
    [1.0, 0.75, 0.375, 0.375]
    """
    fdts, censored = (np.asarray(column) for column in zip(*observed, strict=True))
    length = int(fdts.max()) + 1
    events = np.bincount(fdts[~censored], minlength=length)
    ended = np.bincount(fdts[censored], minlength=length)
    at_risk = len(fdts) - np.concatenate([[0], np.cumsum(events)[:-1]]) - np.cumsum(ended)
    alive = np.cumprod(1 - events / np.maximum(at_risk, 1))
    return alive if events[-1] else alive[:-1]


def survival_quantile(observed: Sequence[tuple[int, bool]], share: float) -> int:
    """The FDT that `share` of the completions do not get beyond; the longest agreement seen, a lower bound, where fewer diverge at all.

    >>> survival_quantile([(1, False), (2, True), (2, False), (4, True)], 0.1), survival_quantile([(8, True)] * 3, 0.5)
    (1, 8)
    """
    reached = np.flatnonzero(survival(observed) <= 1 - share + 1e-12)
    return int(reached[0]) if len(reached) else max(fdt for fdt, _ in observed)


def make_reference(
    model: Scorer, prompts: Sequence[Tokens], completions: Sequence[Tokens], *, top: int = TOP, done: Callable[[], object] = lambda: None
) -> Reference:
    """The original on its own greedy completions of `prompts` (token lists, none empty); calls `done` after each."""
    traces, ids, values = [], [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        logprobs = _logprobs(model, prompt, completion)
        best = torch.topk(logprobs, min(top, logprobs.shape[1]), dim=1)
        ids.append(best.indices.to(torch.int32).numpy())
        values.append(best.values.numpy())
        traces.append(_trace(logprobs, completion, ids[-1], values[-1]))
        done()
    return Reference(tuple(map(tuple, prompts)), tuple(map(tuple, completions)), tuple(traces), tuple(ids), tuple(values))


def judge(model: Scorer, reference: Reference, *, done: Callable[[], object] = lambda: None) -> list[Trace]:
    """A candidate's trace of each completion of the reference: one teacher-forced pass per prompt; calls `done` after each."""
    traces = []
    every = zip(reference.prompts, reference.completions, reference.top_ids, reference.top_logprobs, strict=True)
    for prompt, completion, ids, values in every:
        traces.append(_trace(_logprobs(model, prompt, completion), completion, ids, values))
        done()
    return traces


def text_losses(model: Scorer, text: Tokens) -> Floats:
    """Nats per token of `text` after its first: what perplexity is the exponential mean of."""
    logprobs = torch.log_softmax(model.logits(list(text))[:-1].detach().to("cpu", torch.float64), dim=1)
    return -logprobs.gather(1, torch.tensor(text[1:])[:, None]).flatten().numpy()


def _logprobs(model: Scorer, prompt: Tokens, completion: Tokens) -> torch.Tensor:
    """Log-probabilities [N, vocabulary] in float64 at each token of the completion."""
    assert len(prompt) > 0, "a prompt needs a token"
    assert len(completion) > 0, "a completion needs a token"
    logits = model.logits([*prompt, *completion])[len(prompt) - 1 : -1]
    return torch.log_softmax(logits.detach().to("cpu", torch.float64), dim=1)


def _trace(logprobs: torch.Tensor, completion: Tokens, top_ids: NDArray[np.int32], top_logprobs: Floats) -> Trace:
    ids = torch.from_numpy(top_ids.astype(np.int64))
    mine = logprobs.gather(1, ids)
    return Trace(
        likeliest=logprobs.argmax(dim=1).numpy(),
        losses=-logprobs.gather(1, torch.tensor(list(completion))[:, None]).flatten().numpy(),
        margins=(mine[:, 0] - mine[:, 1]).numpy() if ids.shape[1] > 1 else np.full(len(completion), math.inf),
        kl=_bucketed_kl(torch.from_numpy(top_logprobs), mine, whole=ids.shape[1] == logprobs.shape[1]).numpy(),
    )


def _bucketed_kl(p: torch.Tensor, q: torch.Tensor, *, whole: bool) -> torch.Tensor:
    """KL of distributions given by log-probabilities [N, k] of some outcomes and, unless that is the `whole`, all others as one."""
    kl = (p.exp() * (p - q)).sum(dim=1)
    if not whole:
        rest_p, rest_q = ((1 - part.exp().sum(dim=1)).clamp(min=1e-12) for part in (p, q))
        kl += rest_p * (rest_p.log() - rest_q.log())
    return kl.clamp(min=0)
