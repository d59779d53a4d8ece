"""Drawing tokens: keyed randomness and verification of drafts.

Promise: a token depends on the logits at its position, on the tokens before it and on (seed, choice, absolute position), on nothing
else; so batching, drafting, preemption and migration cannot change it. Lossless drafts: at each position y is drawn from the model's
own processed distribution, and the draft is accepted while y equals it; what is emitted is always the y's, so their law is the model's.
Price: greedy, one argmax of the logits; else one uniform and one pass over the row per token (`pick.py`), none for rows behind a
draft that failed. The logits may be float64, float32 or bfloat16, on any device.
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serve.engine.distribution import draw, processed
from serve.engine.pick import pick
from serve.engine.request import Run, Sampling, TokenLogprob
from serve.engine.rules import Rules
from serve.engine.schedule import Chunk

__all__ = ["Question", "Run", "uniform", "verify"]

_MASK = (1 << 64) - 1

Answer = tuple[list[int], list[int]]
"""The tokens drawn for a question, at least up to the first that is not the draft's, and the likeliest at every position."""


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


@dataclass(slots=True)
class Question:
    """What to draw for one sequence: rows of logits for the positions `position`, `position` + 1, …, one more than drafts."""

    sampling: Sampling
    choice: int
    position: int
    draft: Series[int]
    rules: Rules | None = None

    @classmethod
    def of(cls, chunk: Chunk) -> Question:
        """What a sampling chunk asks."""
        sequence, request = chunk.sequence, chunk.sequence.request
        return cls(request.sampling, request.choice, len(sequence.tokens), chunk.draft, sequence.rules)

    def uniform(self, row: int) -> float:
        """What decides the token at row `row`."""
        seed = self.sampling.seed
        assert seed is not None, "the engine gives every request a seed"
        return uniform(seed, self.choice, self.position + row)


def verify(questions: Series[Question], logits: Tensor) -> list[Run]:
    """Draw at every position and keep drafts while they equal what was drawn. logits [R, vocab], questions in row order.

    A run's `likeliest` are the maxima of what is drawn from: after rules, if the request has any, and before temperature.
    """
    answers = _verify_here(questions, logits) if logits.device.type == "cpu" else _verify_there(questions, logits)
    runs, row = [], 0
    for question, (drawn, likeliest) in zip(questions, answers, strict=True):
        tokens = _held(question.draft, drawn)
        logprobs = question.sampling.logprobs
        runs.append(Run(tokens, None if logprobs is None else _logprobs(logprobs, logits[row : row + len(tokens)], tokens), likeliest))
        row += len(likeliest)
    return runs


def _verify_here(questions: Series[Question], logits: Tensor) -> list[Answer]:
    """On the CPU: sequence by sequence, sampled rows one after the other until a draft fails."""
    table = (logits if logits.dtype in (torch.float32, torch.float64) else logits.float()).numpy()
    best: list[int] | None = table.argmax(-1).tolist() if all(q.rules is None for q in questions) else None
    answers, row = [], 0
    for question in questions:
        end = row + len(question.draft) + 1
        rows = table[row:end]
        if question.rules is not None:
            rows = rows.astype(np.float64)
            question.rules.apply(rows, question.draft)
        likeliest = best[row:end] if best is not None else rows.argmax(-1).tolist()
        answers.append((likeliest if question.sampling.temperature == 0 else _drawn(question, rows, likeliest), likeliest))
        row = end
    return answers


def _drawn(question: Question, rows: NDArray[Any], likeliest: list[int]) -> list[int]:
    """The tokens drawn, up to the first that is not the draft's."""
    drawn: list[int] = []
    for i, (row, top) in enumerate(zip(rows, likeliest, strict=True)):
        drawn.append(pick(row, float(row[top]), question.sampling, question.uniform(i)))
        if i < len(question.draft) and drawn[i] != question.draft[i]:
            break
    return drawn


def _verify_there(questions: Series[Question], logits: Tensor) -> list[Answer]:
    """On a device: all rows together, and their tokens fetched at once."""
    spans, row = [], 0
    for question in questions:
        spans.append(slice(row, row + len(question.draft) + 1))
        row = spans[-1].stop
    if any(q.rules is not None for q in questions):
        logits = logits.to(torch.float64, copy=True)
        for question, span in zip(questions, spans, strict=True):
            if question.rules is not None:
                question.rules.apply_there(logits[span], question.draft)
    likeliest = logits.argmax(-1)
    drawn = likeliest
    sampled = [(q, span.start + i, i) for q, span in zip(questions, spans, strict=True) if q.sampling.temperature for i in _rows(q)]
    if sampled:
        rows = torch.tensor([row for _, row, _ in sampled], device=logits.device)
        tokens = draw(processed(logits[rows], [q.sampling for q, _, _ in sampled]), [q.uniform(i) for q, _, i in sampled])
        drawn = likeliest.index_copy(0, rows, tokens)
    best, found = torch.stack([likeliest, drawn]).tolist()
    return [(found[span], best[span]) for span in spans]


def _rows(question: Question) -> range:
    return range(len(question.draft) + 1)


def _held(draft: Series[int], drawn: list[int]) -> list[int]:
    """What is drawn, as far as the draft before it held."""
    held = 0
    while held < len(draft) and drawn[held] == draft[held]:
        held += 1
    return drawn[: held + 1]


def _logprobs(num_top: int, logits: Tensor, tokens: list[int]) -> list[TokenLogprob]:
    scores = torch.log_softmax(logits.double(), -1)
    own = scores.gather(-1, torch.tensor(tokens, device=scores.device)[:, None]).flatten().tolist()
    top = scores.topk(min(num_top, scores.shape[-1]), dim=-1) if num_top else None
    tops = (
        [tuple(zip(i, v, strict=True)) for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)] if top else [()] * len(own)
    )
    return [TokenLogprob(token, score, best) for token, score, best in zip(tokens, own, tops, strict=True)]
