"""Drafts inside a grammar: cut where it forbids them, continued where it leaves no choice.

Promise: no verification is spent on a token that the grammar rules out, and what every text must contain next (a key's name, a
literal) is drafted without a model; a draft never changes the tokens, so neither does this. Price: a few microseconds a token.
After: jump-forward decoding (SGLang, arXiv 2312.07104), as drafts, so that the model keeps its own way of cutting text into tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from serve.engine.draft import Drafter

if TYPE_CHECKING:
    from serve.engine.grammar import Guide

__all__ = ["GuidedDrafter", "guided"]

_CHARS_PER_TOKEN = 16
"""Of a forced text, so many characters per token of the longest draft are looked at."""


class GuidedDrafter:
    """A drafter whose proposals keep to a guide."""

    _FADE = 0.9

    def __init__(self, inner: Drafter, guide: Guide, encode: Callable[[str], list[int]], max_draft: int) -> None:
        self._inner, self._guide, self._encode, self._max_draft = inner, guide, encode, max_draft
        self._num_inner = 0  # tokens of the last proposal that are the inner drafter's
        self._num_forced = 0
        self._odds = 0.8  # how often a forced token was cut as it was drafted

    def observe(self, tokens: Iterable[int]) -> None:
        """More of the text."""
        self._inner.observe(tokens)

    def propose(self, verify_cost: float) -> list[int]:
        """What of the inner drafter's proposal the grammar allows, and what it forces after that."""
        draft = self._inner.propose(verify_cost)
        self._num_inner, forced = self._guide.fit(draft)
        draft = draft[: self._num_inner]
        chance = self._odds
        text = forced[: _CHARS_PER_TOKEN * self._max_draft]
        tokens = self._encode(text)[:-1] if text and chance > verify_cost else []  # the last may go on beyond what is forced
        for token in tokens:
            if chance <= verify_cost or len(draft) == self._max_draft:
                break
            draft.append(token)
            chance *= self._odds
        num_kept, _ = self._guide.fit(draft) if tokens else (len(draft), "")
        self._num_forced = num_kept - self._num_inner
        return draft[:num_kept]

    def judge(self, num_accepted: int) -> None:
        """Tell the inner drafter how its own tokens fared."""
        self._inner.judge(min(num_accepted, self._num_inner))
        for held in range(min(self._num_forced, num_accepted - self._num_inner + 1)):
            self._odds = self._FADE * self._odds + (1 - self._FADE) * (held < num_accepted - self._num_inner)

    def recycle(self, tokens: Sequence[int], successors: Sequence[int]) -> None:
        """Pass on what the model thought likeliest."""
        self._inner.recycle(tokens, successors)


def guided(drafter: Drafter | None, guide: Guide | None, encode: Callable[[str], list[int]], max_draft: int) -> Drafter | None:
    """The drafter, kept to the guide if there are both. `encode`: text to tokens, without special ones."""
    return drafter if drafter is None or guide is None else GuidedDrafter(drafter, guide, encode, max_draft)
