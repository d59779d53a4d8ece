"""Guessing the next tokens, so that one step can verify several of them.

Promise: a draft never changes the tokens, only the number of steps, and is only as long as it earns what verifying it costs; pure
Python, deterministic. Price: some 15 microseconds a token, memory linear in the text. Beyond ANPD (arXiv 2404.08698, here as
`AnpdDrafter`): contexts of any length, a store of earlier answers, calibrated chances, drafts ended by expected gain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from serve.engine.draft_anpd import AnpdDrafter
from serve.engine.draft_odds import RECENTS, RECYCLED, SOLE, Odds, cell
from serve.engine.draft_store import LONGEST, SharedNgrams
from serve.engine.draft_text import REACH, OwnText
from serve.engine.step_cost import StepCost

__all__ = ["AnpdDrafter", "Drafter", "NgramDrafter", "Odds", "SharedNgrams", "StepCost"]


class Drafter(Protocol):
    """What proposes a request's next tokens: `observe` the prompt, then `propose`, `judge`, `observe` the emitted run, …"""

    def observe(self, tokens: Iterable[int]) -> None:
        """More of the text: first the prompt, then each emitted run."""

    def propose(self, verify_cost: float) -> list[int]:
        """Likely next tokens. `verify_cost`: what verifying one more token costs everyone in the step, in plain steps (see `StepCost`)."""

    def judge(self, num_accepted: int) -> None:
        """How many tokens of the last proposal held."""

    def recycle(self, tokens: Sequence[int], successors: Sequence[int]) -> None:
        """What the model thinks likeliest after each of these tokens, which it had rejected where they were drafted."""


class NgramDrafter:
    """Drafts from the longest repeats of the request's own text and from earlier answers, each guess with its calibrated chance.

    The next token is drafted while the chance that all guesses so far hold is above what the token costs: verify_cost times the tokens
    that a plain step's worth of cost gives. With T tokens to emit, the sum over steps of 1 + g·k is least when every drafted token
    earns, in tokens, at least g times the rate T / Σ(1 + g·k) (Dinkelbach's rule for the best ratio); in a stretch that repeats the rate
    is higher than elsewhere, so the average of the latest steps' and of this draft's own is taken.

    >>> drafter = NgramDrafter()
    >>> drafter.observe([1, 2, 3, 4, 9, 1, 2, 3])
    >>> drafter.propose(verify_cost=0.02)[:2]
    [4, 9]
    >>> drafter.judge(1)
    >>> drafter.observe([4, 7])
    """

    _CAUTION = 1.2
    """Products of chances are a little too high: the guess was picked because it looked best."""
    _FADE = 0.1
    """Weight of the latest guess in the share of guesses that held."""
    _TRUSTED = 2
    """A match of this many tokens goes on after one token that was another."""
    _RECYCLED = 4096
    """Tokens whose recycled successor is kept."""

    def __init__(
        self,
        order: int = 8,
        max_draft: int = 16,
        shared: SharedNgrams | None = None,
        odds: Odds | None = None,
        successors: dict[int, int] | None = None,
    ) -> None:
        """`shared`, `odds` and `successors` (see `recycle`) outlive the request: give those of its tenant."""
        if order < 2 or max_draft < 1:
            raise ValueError(f"drafter: order {order}, max_draft {max_draft}; use at least 2 and 1")
        self._max_draft = max_draft
        self._text = OwnText(order)
        self._shared = shared
        self._odds = odds if odds is not None else shared.odds if shared is not None else Odds()
        self._luck = 0.5  # share of the latest guesses that held
        self._resume = (0, -1)  # length and place of a match that was broken by the latest token
        self._successors: dict[int, int] = {} if successors is None else successors
        # the last proposal: (token, chance, cells, length and place of the match) of each guess, the one not worth drafting too
        self._guesses: list[tuple[int, float, tuple[int, ...], int, int]] = []
        self._recent, self._asked, self._held, self._cost = 0, False, 0, 1.0

    def observe(self, tokens: Iterable[int]) -> None:
        """More of the text: first the prompt, then each emitted run."""
        run = list(tokens)
        self._resume = (0, -1)
        if run and self._asked:
            self._learn(run)
        self._text.extend(run)

    def propose(self, verify_cost: float) -> list[int]:
        """Up to max_draft tokens, fewer where a longer draft would not earn `verify_cost` a token; often none."""
        self._guesses, self._asked = [], verify_cost < 1.0
        if not self._asked:  # not even a sure guess would pay: think no further
            return []
        odds, ahead = self._odds, _Ahead(self._text, self._shared, self._resume, self._successors)
        draft: list[int] = []
        guesses = self._guesses
        rate, recent, chance, expected, depth = odds.rate, int(self._luck * (RECENTS - 0.01)), 1.0, 1.0, 0
        price = 0.5 * self._CAUTION * verify_cost
        while True:
            token, log_odds, cells = ahead.guess(odds)
            if token < 0:
                break
            own = odds.chance(log_odds, depth, recent)
            guesses.append((token, own, cells, ahead.length, ahead.places[0] if ahead.places else -1))
            chance *= own
            if chance <= price * (rate + expected / (1.0 + verify_cost * depth)) or depth == self._max_draft:
                break
            expected += chance
            depth += 1
            draft.append(token)
            ahead.take(token)
        self._recent, self._held, self._cost = recent, 0, 1.0 + verify_cost * len(draft)
        return draft

    def judge(self, num_accepted: int) -> None:
        """How many tokens of the last proposal held; the next run tells what came instead of the first that did not."""
        self._held = num_accepted

    def recycle(self, tokens: Sequence[int], successors: Sequence[int]) -> None:
        """The model's likeliest successors of rejected tokens, as far as known: guesses where no n-gram has any.

        After token recycling (arXiv 2408.08696), reduced to chains in bounded memory.
        """
        known = self._successors
        for token, successor in zip(tokens, successors, strict=False):
            known.pop(token, None)
            known[token] = successor
        while len(known) > self._RECYCLED:
            del known[next(iter(known))]

    def _learn(self, run: list[int]) -> None:
        """What the run says of the guesses: those up to the first that failed were put to the test."""
        self._asked = False
        odds, luck, recent, text = self._odds, self._luck, self._recent, self._text.tokens
        odds.spend(min(self._held + 1, len(run)), self._cost)
        for depth, (token, chance, cells, length, place) in enumerate(self._guesses[: min(self._held + 1, len(run))]):
            truth = run[depth]
            held = token == truth
            odds.learn(cells, chance, held, depth, recent)
            luck += self._FADE * (held - luck)
            if not held or (place >= 0 and text[place + 1] != truth):
                if length >= self._TRUSTED and text[place + 1] != truth:
                    self._resume = (length, place + 1)
                break
        self._luck = luck


class _Ahead:
    """Where a draft stands: the last tokens, drafted ones included, and what is known of such contexts."""

    __slots__ = ("_resume", "_store", "_successors", "_tail", "_text", "known_length", "length", "places")

    def __init__(self, text: OwnText, store: SharedNgrams | None, resume: tuple[int, int], successors: dict[int, int]) -> None:
        self._text, self._store, self._tail, self._successors = text, store, text.tail(), successors
        self.known_length = LONGEST  # no longer context of the tail is in the store
        self.length, self.places = text.match(self._tail)
        self._resume = resume

    def guess(self, odds: Odds) -> tuple[int, float, tuple[int, ...]]:
        """The likeliest next token, its log-odds and their cells; -1 if there is no guess."""
        places = self.places
        if len(places) == 1:
            own, own_cell = self._text.tokens[places[0] + 1], SOLE[self.length]
        elif places:
            own, count, total = self._text.follower(places)
            own_cell = cell(self.length, count, total)
        else:
            own, own_cell = self._usual(odds)
        if self._store is not None:
            known = self.known_length
            context = tuple(self._tail[-known:]) if known else ()
            while context:
                entry = self._store.find(context)
                if entry is not None:
                    self.known_length = known
                    return odds.weigh(own, own_cell, entry.best, cell(known, entry.count, entry.total), known)
                context = context[1:]
                known -= 1
            self.known_length = 0
        if own >= 0:
            return odds.weigh(own, own_cell, -1, 0, 0)
        recycled = self._successors.get(self._tail[-1], -1)
        return odds.weigh(-1, 0, recycled, RECYCLED, 0) if recycled >= 0 else (-1, 0.0, ())

    def take(self, token: int) -> None:
        """The draft goes on with this token."""
        self._tail.append(token)
        if self.known_length < LONGEST:
            self.known_length += 1
        text = self._text.tokens
        if len(self.places) == 1:  # the usual case, at half the price
            place = self.places[0] + 1
            self.places = [place] if place < len(text) - 1 and text[place] == token else []
        elif self.places:
            end = len(text) - 1
            self.places = [place + 1 for place in self.places if place + 1 < end and text[place + 1] == token]
        if self.places:
            if self.length < REACH - 1:
                self.length += 1
        else:
            self.length, self.places = self._text.match(self._tail)
            self._resume = (0, -1)

    def _usual(self, odds: Odds) -> tuple[int, int]:
        """A guess where no context of two tokens is known: what usually follows the last one, or the broken match goes on."""
        usual = self._text.usual(self._tail[-1])
        length, place = self._resume
        if place >= 0:
            resumed = cell(0, length, length)
            if usual is None or odds.prefers(resumed, cell(1, usual[1], usual[2])):
                self.length, self.places = 1, [place]
                return self._text.tokens[place + 1], resumed
        return (-1, 0) if usual is None else (usual[0], cell(1, usual[1], usual[2]))
