"""Guessing the next tokens from the request's own text, so that one step can verify several of them.

Promise: a draft never changes the tokens, only the number of steps; pure Python, deterministic, a few microseconds a token.
Price: memory linear in the text. After: adaptive n-gram parallel decoding, ANPD (arXiv 2404.08698), N=5, K=7. Unlike its
published code, the prompt is counted once, no n-gram crosses from the text's tail to its head, and a miss drafts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

__all__ = ["AnpdDrafter", "Drafter", "Pace", "StepCost"]


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


class Pace:
    """How far ahead drafting pays, from how drafts fared: position j of a draft holds with about rate**j.

    The rate fades back to its prior while nothing is drafted, so a request whose text turns repetitive is tried again.

    >>> pace = Pace(); [pace.length(cost, 7) for cost in (0.0, 0.05, 0.5, 2.0)]
    [7, 5, 1, 0]
    """

    _PRIOR, _FADE, _FORGET = 0.55, 0.9, 0.995

    def __init__(self) -> None:
        self._held, self._tried = self._PRIOR * 2, 2.0

    @property
    def rate(self) -> float:
        """Estimated chance that a drafted token holds, given that those before it held."""
        return self._held / self._tried

    def judge(self, num_drafted: int, num_accepted: int) -> None:
        """A draft's fate: each accepted token held, the one after them (if drafted) did not."""
        tried = num_accepted + (num_accepted < num_drafted)
        self._held = self._held * self._FADE + num_accepted
        self._tried = self._tried * self._FADE + tried

    def rest(self) -> None:
        """A step without a draft: belief drifts towards the prior."""
        self._held = self._held * self._FORGET + self._PRIOR * (1 - self._FORGET) * self._tried

    def length(self, verify_cost: float, longest: int) -> int:
        """The most tokens, up to `longest`, of which the last still earns `verify_cost`."""
        rate, chance = min(self.rate, 0.99), 1.0
        for j in range(longest):
            chance *= rate
            if chance <= verify_cost:
                return j
        return longest


class AnpdDrafter:
    """Multi-level n-grams over the request's own prompt and output, the longest matching context first.

    Each context of 1 … order-1 tokens remembers what followed it, how often, and which follower is now the most frequent
    (the latest of equals). A draft is grown token by token, each guess joining the context of the next.

    >>> drafter = AnpdDrafter(order=3, max_draft=4)
    >>> drafter.observe([1, 2, 3, 9, 1, 2])
    >>> drafter.propose(verify_cost=0.0)
    [3, 9, 1, 2]
    """

    def __init__(self, order: int = 5, max_draft: int = 7) -> None:
        assert order >= 2, order
        assert max_draft >= 1, max_draft
        self._longest = order - 1
        self._max_draft = max_draft
        self._tail: tuple[int, ...] = ()  # the last order-1 tokens of the text
        self._counts: dict[tuple[int, ...], int] = {}  # (context…, follower) -> how often
        self._best: dict[tuple[int, ...], int] = {}  # context -> follower
        self._pace = Pace()
        self._num_proposed = 0

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
        tail, best = self._tail, self._best
        for _ in range(self._pace.length(verify_cost, self._max_draft)):
            guess = next((best[tail[start:]] for start in range(len(tail)) if tail[start:] in best), None)
            if guess is None:
                break
            draft.append(guess)
            tail = (*tail, guess)[-self._longest :]
        self._num_proposed = len(draft)
        if not draft:
            self._pace.rest()
        return draft

    def judge(self, num_accepted: int) -> None:
        """Learn how far ahead to draft."""
        if self._num_proposed:
            self._pace.judge(self._num_proposed, num_accepted)
            self._num_proposed = 0
