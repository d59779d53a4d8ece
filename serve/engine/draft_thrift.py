"""Thinking costs too: a request whose drafts do not pay for the time spent on guessing stops guessing for a while.

Promise: on text that cannot be guessed, drafting costs next to nothing; a text that repeats itself at length is followed even then
(`draft_echo.py`), and one that can be guessed otherwise is noticed within some hundred tokens. Price: two clock readings a step. All
sequences of a step wait while one drafter thinks, so a second of thinking costs as many tokens as the engine would have made in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from serve.engine.draft import Drafter
from serve.engine.draft_echo import SURE, Echo, EchoOdds

__all__ = ["Thrift", "ThriftyDrafter"]


@dataclass(slots=True)
class Thrift:
    """What thinking costs at the moment, and what drafts have brought lately: for all requests of an engine."""

    tokens_per_s: float = 0.0
    """Tokens that the engine makes in a second without drafts, averaged over the latest steps."""
    gain: float = 0.1
    """Tokens that a step's draft brought a sequence, less its costs: the average of the latest steps."""
    resting: bool = False
    """Whether nobody thinks at the moment (`draft_worth.py`)."""
    echoes: EchoOdds = field(default_factory=EchoOdds)

    def price(self, tokens_per_s: float) -> None:
        """A step made its sequences so many tokens a second, drafts not counted."""
        self.tokens_per_s += 0.1 * (tokens_per_s - self.tokens_per_s)


class ThriftyDrafter:
    """A drafter that naps while its drafts bring less than they and the thinking cost; naps grow while nothing changes.

    >>> from serve.engine.draft import NgramDrafter
    >>> drafter = ThriftyDrafter(NgramDrafter(), Thrift(tokens_per_s=1e9))  # thinking is far too dear
    >>> drafter.observe([1, 2, 3, 4] * 5)
    >>> [len(drafter.propose(0.0)) for _ in range(6)]
    [16, 16, 16, 16, 0, 0]
    """

    _FADE, _FADE_ALL = 0.03, 0.02
    _FIRST_NAP, _LONGEST_NAP = 32, 256
    _TRIES = 3
    """Fruitless steps after which a request that has just woken goes to sleep again."""
    _CAUTION = 1.2

    def __init__(self, inner: Drafter, thrift: Thrift, max_draft: int = 16) -> None:
        self._inner, self._thrift, self._max_draft = inner, thrift, max_draft
        self._echo = Echo()
        self._num_seen = 0  # tokens that the inner drafter has been shown
        self._echoed = (0, 0)  # the last proposal, if an echo's: tokens in a row before it, and its length
        self._balance = thrift.gain if thrift.gain > 0.0 else self._hope(-thrift.gain)
        self._spent: float | None = None  # tokens that the last proposal cost
        self._num_accepted = 0
        self._nap, self._asleep = self._FIRST_NAP, 0

    def observe(self, tokens: Iterable[int]) -> None:
        """More of the text; the inner drafter looks at it when next awake."""
        self._echo.observe(tokens)

    def propose(self, verify_cost: float) -> list[int]:
        """The inner drafter's proposal; while asleep, a long repeat's continuation."""
        self._echoed = (0, 0)
        if self._spent is not None:
            self._settle(self._num_accepted - self._spent)
        if self._asleep or self._thrift.resting:
            self._asleep = max(self._asleep - 1, 0)
            return self._follow(verify_cost)
        began = time.perf_counter()
        self._inner.observe(self._echo.tokens[self._num_seen :])
        self._num_seen = len(self._echo.tokens)
        draft = self._inner.propose(verify_cost)
        self._spent = (time.perf_counter() - began) * self._thrift.tokens_per_s + verify_cost * len(draft)
        self._num_accepted = 0
        return draft

    def judge(self, num_accepted: int) -> None:
        """How many tokens of the last proposal held."""
        run, length = self._echoed
        if length:
            self._thrift.echoes.learn(run, num_accepted, length)
        else:
            self._inner.judge(num_accepted)
            self._num_accepted = num_accepted

    def _follow(self, verify_cost: float) -> list[int]:
        """What a repeat that has proved itself goes on with, as far as it earns its cost."""
        run = self._echo.run
        if run < SURE:
            return []
        own = chance = self._thrift.echoes.chance(run)
        length = 0
        while chance > self._CAUTION * verify_cost and length < self._max_draft:
            chance *= own
            length += 1
        self._echoed = (run, length)
        return self._echo.ahead(length)

    def recycle(self, tokens: Sequence[int], successors: Sequence[int]) -> None:
        """Pass on what the model thought likeliest: learning it costs no thinking."""
        self._inner.recycle(tokens, successors)

    def _settle(self, gain: float) -> None:
        """Book a step's gain; go to sleep when the balance is negative."""
        gain = max(gain, -1.0)  # indexing a prompt or a hiccup is no reason to give up
        self._spent = None
        self._balance += self._FADE * (gain - self._balance)
        self._thrift.gain += self._FADE_ALL * (gain - self._thrift.gain)
        if gain > 0.0:
            self._nap = self._FIRST_NAP
        if self._balance < 0.0:
            self._balance, self._asleep = self._hope(-min(gain, 0.0)), self._nap
            self._nap = min(2 * self._nap, self._LONGEST_NAP)

    def _hope(self, loss: float) -> float:
        """The balance that so many steps of such a loss use up."""
        return self._TRIES * self._FADE * loss
