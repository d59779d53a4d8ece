"""Guessing the next tokens from the request's own text, so that one step can verify several of them.

Promise: a draft never changes the tokens, only the number of steps; pure Python, deterministic, a few microseconds a token.
Price: memory linear in the text. After: adaptive n-gram parallel decoding, ANPD (arXiv 2404.08698), N=5, K=7. Unlike its
published code, the prompt is counted once, no n-gram crosses from the text's tail to its head, and a miss drafts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

__all__ = ["AnpdDrafter", "Drafter", "Odds", "StepCost"]


class Drafter(Protocol):
    """What proposes a request's next tokens: `observe` the prompt, then `propose`, `judge`, `observe` the emitted run, …"""

    def observe(self, tokens: Iterable[int]) -> None:
        """More of the text: first the prompt, then each emitted run."""

    def propose(self, verify_cost: float) -> list[int]:
        """Likely next tokens. `verify_cost`: what one more verified token costs, in steps' worth of tokens (see `StepCost`)."""

    def judge(self, num_accepted: int) -> None:
        """How many tokens of the last proposal held."""


class StepCost:
    """What one more token in a step costs, learnt from the steps themselves.

    Fits seconds = base + slope * tokens by least squares over steps, older steps fading. `g` is slope / seconds of a
    step that serves `num_tokens` tokens. A drafted token that holds with probability a saves its sequence a share a of a
    step; all sequences wait for its verification, so it earns its cost when a > g * sequences.

    >>> cost = StepCost(prior_g=0.05)
    >>> for tokens in (1, 4, 8, 2) * 20: cost.observe(tokens, 0.010 + 0.001 * tokens)
    >>> round(cost.g(1), 3)
    0.091
    """

    _FADE = 0.98
    _PRIOR_WEIGHT = 4.0

    def __init__(self, prior_g: float = 0.05) -> None:
        self._prior_g = prior_g
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step computed `num_tokens` tokens in `seconds`; one far slower than expected (a hiccup) counts less."""
        if self._n > self._PRIOR_WEIGHT:
            seconds = min(seconds, 3.0 * self._y / self._n)
        fade = self._FADE
        self._n, self._x, self._y = self._n * fade + 1, self._x * fade + num_tokens, self._y * fade + seconds
        self._xx, self._xy = self._xx * fade + num_tokens**2, self._xy * fade + num_tokens * seconds

    def g(self, num_tokens: int) -> float:
        """The cost of one more token as a share of a step of `num_tokens` tokens."""
        if self._n < self._PRIOR_WEIGHT:
            return self._prior_g
        mean_x, mean_y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - mean_x**2
        if spread < 0.25:  # every step had the same number of tokens: nothing to learn a slope from
            return self._prior_g
        slope = max(self._xy / self._n - mean_x * mean_y, 0.0) / spread
        base = mean_y + slope * (num_tokens - mean_x)
        return slope / base if base > slope else 1.0


class Odds:
    """How often a guess holds, by the length of the context it rests on; older guesses fade.

    `parent` (the engine's odds over all requests, say) stands in while there is little experience; at the root, a prior does. Odds
    that went unused drift back to the parent's, so that a text which turns repetitive is tried again.

    >>> odds = Odds(); before = odds.of(2)
    >>> odds.learn(2, held=False); odds.of(2) < before
    True
    """

    _PRIOR = (0.3, 0.45, 0.6, 0.7, 0.75, 0.8, 0.8, 0.8)  # for contexts of 1, 2, … tokens; the last for all longer ones
    _WEIGHT, _FADE, _DRIFT = 8.0, 0.95, 0.99

    def __init__(self, parent: Odds | None = None) -> None:
        self._parent = parent
        self._held = [0.0] * len(self._PRIOR)
        self._tried = [0.0] * len(self._PRIOR)

    def of(self, context_length: int) -> float:
        """The chance that a guess from a context of this many tokens holds."""
        level = min(context_length, len(self._PRIOR)) - 1
        prior = self._PRIOR[level] if self._parent is None else self._parent.of(context_length)
        return (self._held[level] + self._WEIGHT * prior) / (self._tried[level] + self._WEIGHT)

    def learn(self, context_length: int, held: bool) -> None:
        """A guess was verified."""
        level = min(context_length, len(self._PRIOR)) - 1
        self._held[level] = self._held[level] * self._FADE + held
        self._tried[level] = self._tried[level] * self._FADE + 1
        if self._parent is not None:
            self._parent.learn(context_length, held)

    def pass_over(self, context_length: int) -> None:
        """A guess was not worth its cost."""
        level = min(context_length, len(self._PRIOR)) - 1
        self._held[level] *= self._DRIFT
        self._tried[level] *= self._DRIFT
        if self._parent is not None:
            self._parent.pass_over(context_length)


class AnpdDrafter:
    """Multi-level n-grams over the request's own prompt and output, the longest matching context first.

    Each context of 1 … order-1 tokens remembers what followed it, how often, and which follower is now the most frequent
    (the latest of equals). A draft is grown token by token, each guess joining the context of the next, while the chance
    that all of it holds is above what verifying the next token costs.

    >>> drafter = AnpdDrafter(order=3, max_draft=4)
    >>> drafter.observe([1, 2, 3, 9, 1, 2])
    >>> drafter.propose(verify_cost=0.0)
    [3, 9, 1, 2]
    """

    def __init__(self, order: int = 5, max_draft: int = 7, odds: Odds | None = None) -> None:
        assert order >= 2, order
        assert max_draft >= 1, max_draft
        self._longest = order - 1
        self._max_draft = max_draft
        self._tail: tuple[int, ...] = ()  # the last order-1 tokens of the text
        self._counts: dict[tuple[int, ...], int] = {}  # (context…, follower) -> how often
        self._best: dict[tuple[int, ...], int] = {}  # context -> follower
        self._odds = Odds(odds)
        self._levels: list[int] = []  # of the last proposal's guesses: the length of their contexts

    def observe(self, tokens: Iterable[int]) -> None:
        """Count the n-grams that end in each new token."""
        counts, best, tail, longest = self._counts, self._best, self._tail, self._longest
        for token in tokens:
            for start in range(len(tail)):
                context = tail[start:]
                gram = (*context, token)
                count = counts[gram] = counts.get(gram, 0) + 1
                champion = best.get(context)
                if champion is None or count >= counts[(*context, champion)]:
                    best[context] = token
            tail = (*tail, token)[-longest:]
        self._tail = tail

    def propose(self, verify_cost: float) -> list[int]:
        """Up to max_draft tokens; fewer where a longer draft would not earn `verify_cost`, none on a miss."""
        draft: list[int] = []
        self._levels = []
        tail, best, chance = self._tail, self._best, 1.0
        while len(draft) < self._max_draft:
            context = next((tail[start:] for start in range(len(tail)) if tail[start:] in best), None)
            if context is None:
                break
            chance *= self._odds.of(len(context))
            if chance <= verify_cost:
                self._odds.pass_over(len(context))
                break
            draft.append(best[context])
            self._levels.append(len(context))
            tail = (*tail, best[context])[-self._longest :]
        return draft

    def judge(self, num_accepted: int) -> None:
        """Learn the odds: each accepted token held, the one after them (if drafted) did not."""
        for level in self._levels[:num_accepted]:
            self._odds.learn(level, held=True)
        if num_accepted < len(self._levels):
            self._odds.learn(self._levels[num_accepted], held=False)
        self._levels = []
