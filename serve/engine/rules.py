"""What a request's options make of the model's logits before anything is drawn: grammar, minimum length, biases, penalties.

Promise: a function of the tokens so far, at every drafted position too: there the draft before it counts as output, so a draft
changes nothing. Penalties and grammar follow the tokens as they become known, and are rebuilt from them in another engine.
Order, as in vLLM: what the grammar forbids and ends that come too early are ruled out; biases are added; then the repetition
penalty (Keskar et al. 2019, as in transformers: of prompt and output), then frequency and presence (OpenAI: of the output).
Price: nothing where no option asks; else a copy of the sequence's logits in float64 and some 20 microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serve.engine.request import Sampling

if TYPE_CHECKING:
    from serve.engine.grammar import Guide

__all__ = ["Rules", "Tally", "rules"]

_NEVER = -float("inf")
_NEUTRAL = Sampling()
_NAMES = ("min_tokens", "logit_bias", "repetition_penalty", "presence_penalty", "frequency_penalty")


class Tally:
    """The distinct tokens of prompt and output, and how often each is in the output.

    >>> tally = Tally([5, 6, 5]); tally.append(7); tally.append(6)
    >>> tokens, counts = tally.table(draft=[7])
    >>> tokens.tolist(), counts.tolist()
    ([5, 6, 7], [[0.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
    """

    def __init__(self, prompt: Iterable[int]) -> None:
        distinct = list(dict.fromkeys(prompt))
        self.num_prompt = len(distinct)
        """The first so many distinct tokens are in the prompt."""
        self._slots = {token: slot for slot, token in enumerate(distinct)}
        self._tokens = np.array([*distinct, *[0] * 64], dtype=np.int64)
        self._counts = np.zeros(len(self._tokens))

    def append(self, token: int) -> None:
        """One more token of the output."""
        slot = self._slot(token)  # first, for it may put a longer array in the place of _counts
        self._counts[slot] += 1

    def spread(self, values: Iterable[tuple[int, float]]) -> NDArray[np.float64]:
        """(token, value) pairs as values [T] of the distinct tokens so far, the pairs' own among them."""
        slots = [(self._slot(token), value) for token, value in values]
        found = np.zeros(len(self._slots))
        for slot, value in slots:
            found[slot] += value
        return found

    def table(self, draft: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The distinct tokens [T], and their counts [k + 1, T] before each of the k drafted tokens and after the last."""
        slots = [self._slot(token) for token in draft]
        counts = np.repeat(self._counts[None, : len(self._slots)], len(draft) + 1, axis=0)
        for row, slot in enumerate(slots, 1):
            counts[row:, slot] += 1
        return self._tokens[: len(self._slots)], counts

    def _slot(self, token: int) -> int:
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._tokens):
            self._tokens, self._counts = (np.concatenate([a, np.zeros_like(a)]) for a in (self._tokens, self._counts))
        self._tokens[slot] = token
        return slot


class Rules:
    """The rules of one request, and where its output stands."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], ends: Iterable[int], guide: Guide | None) -> None:
        self._sampling, self._guide = sampling, guide
        self._ends = sorted(ends)
        self._num_output = 0
        repeats = sampling.repetition_penalty != 1.0
        self._tally: Tally | None = None
        if sampling.logit_bias or repeats or sampling.presence_penalty or sampling.frequency_penalty:
            self._tally = Tally(prompt if repeats else ())
            self._bias = self._tally.spread(sampling.logit_bias)

    def append(self, token: int) -> bool:
        """One more token of the output; whether the grammar lets nothing follow."""
        self._num_output += 1
        if self._tally is not None:
            self._tally.append(token)
        return self._guide is not None and self._guide.append(token)

    def apply(self, logits: NDArray[np.float64], draft: Sequence[int]) -> None:
        """Change logits [k + 1, vocab] in place: the rows after the known tokens and after each of k drafted ones."""
        if self._guide is not None:
            logits[self._guide.forbidden(draft, logits.shape[-1])] = _NEVER
        num_early = self._sampling.min_tokens - self._num_output
        if num_early > 0 and self._ends:
            logits[:num_early, self._ends] = _NEVER
        if self._tally is not None:
            tokens, counts = self._tally.table(draft)
            logits[:, tokens] = self._rescored(logits[:, tokens], counts)

    def apply_there(self, logits: Tensor, draft: Sequence[int]) -> None:
        """The same for float64 logits on a device: only the scores of tokens that were seen come here and go back."""
        if self._guide is not None:
            logits.masked_fill_(torch.from_numpy(self._guide.forbidden(draft, logits.shape[-1])).to(logits.device), _NEVER)
        num_early = self._sampling.min_tokens - self._num_output
        if num_early > 0 and self._ends:
            logits[:num_early, self._ends] = _NEVER
        if self._tally is not None:
            tokens, counts = self._tally.table(draft)
            index = torch.from_numpy(tokens).to(logits.device)
            logits[:, index] = torch.from_numpy(self._rescored(logits[:, index].cpu().numpy(), counts)).to(logits.device)

    def _rescored(self, scores: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores [k + 1, T] of the tally's tokens as biases and penalties make them."""
        assert self._tally is not None
        sampling = self._sampling
        scores[:, : len(self._bias)] += self._bias
        if sampling.repetition_penalty != 1.0:
            seen = counts > 0
            seen[:, : self._tally.num_prompt] = True
            factor = np.where(scores < 0, sampling.repetition_penalty, 1 / sampling.repetition_penalty)
            scores = np.where(seen, scores * factor, scores)
        if sampling.frequency_penalty:
            scores -= sampling.frequency_penalty * counts
        if sampling.presence_penalty:
            scores -= sampling.presence_penalty * (counts > 0)
        return scores


def rules(sampling: Sampling, prompt: Sequence[int], ends: Iterable[int], vocab_size: int, guide: Guide | None = None) -> Rules | None:
    """The rules that a request asks for; None where it asks for none, as most do. `ends`: tokens that end it.

    ValueError for a bias on a token outside the vocabulary.
    """
    bad = next((token for token, _ in sampling.logit_bias if token >= vocab_size), None)
    if bad is not None:
        raise ValueError(f"logit_bias: token {bad} is outside the vocabulary of {vocab_size}; use this model's token ids")
    asks = any(getattr(sampling, name) != getattr(_NEUTRAL, name) for name in _NAMES)
    return Rules(sampling, prompt, [end for end in ends if end < vocab_size], guide) if asks or guide is not None else None
