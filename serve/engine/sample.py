"""Drawing tokens: keyed randomness, the processed distribution, and verification of drafts.

Promise: a token depends on the logits at its position and on (seed, choice, absolute position), on nothing else; so batching,
drafting, preemption and migration cannot change it. Lossless drafts: at each position y is drawn from the model's own processed
distribution, and the draft is accepted while y equals it; what is emitted is always the y's, so their law is the model's.
Price: one uniform and, unless greedy, one pass over the vocabulary in float64 per token.
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass

import torch
from torch import Tensor

from serve.engine.request import Run, Sampling, TokenLogprob
from serve.engine.schedule import Chunk

__all__ = ["Question", "Run", "draw", "processed", "uniform", "verify"]

_MASK = (1 << 64) - 1
_COLDEST = 1e-300
"""Temperatures below this count as this: their reciprocal would be infinite, and only the likeliest are left here already."""


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in (0, 1) that depends on the three numbers only: SplitMix64's finaliser (Steele et al. 2014) chained over them.

    >>> uniform(1, 0, 5) == uniform(1, 0, 5) != uniform(1, 1, 5)
    True
    """
    state = 0x5374_6572_6E61_2121
    for value in (seed, choice, position):
        state = (state + value * 0x9E37_79B9_7F4A_7C15 + 0x9E37_79B9_7F4A_7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
        state ^= state >> 31
    return ((state >> 11) + 0.5) / (1 << 53)


def processed(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution [R, vocab] in float64 that `sampling` draws from; temperature above 0."""
    exact = logits.double()
    scaled = (exact - exact.amax(-1, keepdim=True)) / max(sampling.temperature, _COLDEST)  # at most 0, so nothing overflows to inf
    if 0 < sampling.top_k < scaled.shape[-1]:
        least = scaled.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    probabilities = scaled.softmax(-1)
    if sampling.top_p < 1.0:
        ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked  # mass of the likelier tokens; the first is always kept
        kept = torch.zeros_like(ranked).scatter(-1, order, ranked.masked_fill(before >= sampling.top_p, 0.0))
        probabilities = kept / kept.sum(-1, keepdim=True)
    return probabilities


def draw(probabilities: Tensor, uniforms: Series[float]) -> list[int]:
    """One token per row [R, vocab] by inverse CDF in token order."""
    cumulative = probabilities.cumsum(-1)
    targets = torch.tensor(uniforms, dtype=torch.float64, device=probabilities.device)[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, targets, right=True).clamp_(max=probabilities.shape[-1] - 1)
    return found.flatten().tolist()


@dataclass(frozen=True, slots=True)
class Question:
    """What to draw for one sequence: rows of logits for the positions `position`, `position` + 1, …, one more than drafts."""

    sampling: Sampling
    choice: int
    position: int
    draft: Series[int]

    @classmethod
    def of(cls, chunk: Chunk) -> Question:
        """What a sampling chunk asks."""
        request = chunk.sequence.request
        return cls(request.sampling, request.choice, len(chunk.sequence.tokens), chunk.draft)


def verify(questions: Series[Question], logits: Tensor) -> list[Run]:
    """Draw at every position and keep drafts while they equal what was drawn. logits [R, vocab], questions in row order."""
    likeliest = logits.argmax(-1).tolist() if any(q.sampling.temperature == 0 for q in questions) else []
    runs, row = [], 0
    for question in questions:
        end = row + len(question.draft) + 1
        drawn = likeliest[row:end] if question.sampling.temperature == 0 else _drawn(question, logits[row:end])
        held = 0
        while held < len(question.draft) and drawn[held] == question.draft[held]:
            held += 1
        tokens = drawn[: held + 1]
        runs.append(Run(tokens, _logprobs(question.sampling.logprobs, logits[row : row + held + 1], tokens)))
        row = end
    return runs


def _drawn(question: Question, logits: Tensor) -> list[int]:
    sampling, position = question.sampling, question.position
    assert sampling.seed is not None, "the engine gives every request a seed"
    uniforms = [uniform(sampling.seed, question.choice, position + j) for j in range(len(logits))]
    return draw(processed(logits, sampling), uniforms)


def _logprobs(num_top: int | None, logits: Tensor, tokens: list[int]) -> list[TokenLogprob] | None:
    if num_top is None:
        return None
    scores = torch.log_softmax(logits.double(), -1)
    own = scores.gather(-1, torch.tensor(tokens, device=scores.device)[:, None]).flatten().tolist()
    top = scores.topk(num_top, dim=-1) if num_top else None
    tops = (
        [tuple(zip(i, v, strict=True)) for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)] if top else [()] * len(own)
    )
    return [TokenLogprob(token, score, best) for token, score, best in zip(tokens, own, tops, strict=True)]
