"""How far a guess can be trusted: chances that learn from every guess that meets the truth.

Promise: after some hundred guesses the chances are calibrated to the model and the work at hand, whatever the priors; guesses that were
not worth drafting are learnt from too, for the token the model emits tells whether they would have held. Price: about a microsecond
a guess, 40 KB. Method: online logistic regression over small sets of cells (the mixing of context-mixing compressors, Mahoney 2005):
a guess's log-odds are the sum of its cells' weights; each weight moves by RATE times the error.
"""

from __future__ import annotations

from math import exp

__all__ = ["RECENTS", "RECYCLED", "SOLE", "Odds", "cell"]

_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 9, 9, 9, 9, *[10] * 8, *[11] * 8)
"""Bucket of a context's length in tokens; 0 means resumed after a substitution, 1 the last token alone."""
_COUNTS = (0, 0, 1, 2, 2, 3, 3, 3, 3, *[4] * 7, 5)
"""Bucket of how often the guess followed its context."""
_SHARES = (0, 0, 0, 1, 1, 2, 2, 2, 3)
"""Bucket of its share of all that followed, in eighths; 3 only for all."""
_NUM_LENGTHS, _NUM_COUNTS, _NUM_SHARES = 12, 6, 4
_CELLS = _NUM_LENGTHS * _NUM_COUNTS * _NUM_SHARES
_PLACES = (0, 1, 2, 3, *[4] * 4, *[5] * 9)
"""Bucket of a guess's place in the draft; the last for all beyond."""
RECENTS = 5
"""Buckets of the share of the request's latest guesses that held."""


SOLE = tuple((length * _NUM_COUNTS + 0) * _NUM_SHARES + 3 for length in _LENGTHS)
"""The cell of a guess that followed its context the only time, by length."""
RECYCLED = 0
"""The cell, among the store's, of a token that the model thought likeliest after a rejected draft."""


def cell(length: int, count: int, total: int) -> int:
    """The cell of a guess that followed a context of `length` tokens `count` times out of `total`.

    >>> cell(5, 1, 1) == cell(5, 1, 1) != cell(5, 3, 4)
    True
    """
    bucket = _COUNTS[count] if count < 16 else 5
    return (_LENGTHS[length] * _NUM_COUNTS + bucket) * _NUM_SHARES + (3 if count == total else _SHARES[8 * count // total])


_OWN_AGAINST, _STORE, _STORE_AGAINST = (i * _CELLS for i in range(1, 4))  # a guess from the own text: its cell as it is
_ALONE, _AGREE, _AGAINST_STORE, _AGAINST_OWN, _STORE_ALONE = (4 * _CELLS + i * _NUM_LENGTHS * 8 for i in range(5))
_TOKEN = _STORE_ALONE + _NUM_LENGTHS * 8
_NUM_TOKENS = 4096  # tokens share weights by their low bits
_DEPTH = _TOKEN + _NUM_TOKENS
_RECENT = _DEPTH + 6
_NUM_WEIGHTS = _RECENT + RECENTS


def _priors() -> list[float]:
    """Weights to begin with, as found on code, arithmetic, instructions, summaries and chat alike; rounded, for they move at once."""
    weights = [0.0] * _NUM_WEIGHTS
    for i in range(_CELLS):
        count, share = i // _NUM_SHARES % _NUM_COUNTS, i % _NUM_SHARES
        weights[i] = (-0.8, -0.5, -0.1, 1.1)[share]
        weights[_STORE + i] = (-0.7, -0.2, 0.1, 0.7)[share] + (-0.5, -0.3, 0.1, 0.3, 0.3, 0.3)[count]
    for i in range(_NUM_LENGTHS * 8):
        length = i // 8
        weights[_AGREE + i] = 0.6 if length < 5 else 0.4
        weights[_AGAINST_STORE + i] = (-0.7, -0.7, -0.25)[length] if length < 3 else 0.0
    for i in range(_NUM_COUNTS * _NUM_SHARES):
        weights[i] = 0.0  # resumed after a substitution: about even
    weights[_DEPTH] = -0.6  # the token before the first guess was one that no draft held
    weights[_RECENT : _RECENT + RECENTS] = (-0.4, -0.3, -0.3, -0.1, 0.3)
    return weights


class Odds:
    """Weights of all cells, and what steps gave for their cost; one for all requests that may learn from each other.

    >>> odds = Odds(); before, cells = odds.weigh(7, cell(3, 2, 2), -1, 0, 0)[1:]
    >>> odds.learn(cells, odds.chance(before, 0, 2), held=True, depth=0, recent=2)
    >>> odds.weigh(7, cell(3, 2, 2), -1, 0, 0)[1] > before
    True
    """

    __slots__ = ("_cost", "_tokens", "_weights")

    RATE = 0.05
    _FADE = 0.99

    def __init__(self) -> None:
        self._weights = _priors()
        self._tokens = self._cost = 20.0

    def weigh(self, own: int, own_cell: int, store: int, store_cell: int, store_length: int) -> tuple[int, float, tuple[int, ...]]:
        """The likelier of two tokens (-1: none), one from the request's own text, one from the store; its log-odds and their cells."""
        weights = self._weights
        joint = own_cell // (_NUM_COUNTS * _NUM_SHARES) * 8 + store_length
        if own == store:
            a, b, c, d = own_cell, _AGREE + joint, _TOKEN + own % _NUM_TOKENS, _STORE + store_cell
            return own, weights[a] + weights[b] + weights[c] + weights[d], (a, b, c, d)
        if store < 0:
            a, b, c = own_cell, _ALONE + joint, _TOKEN + own % _NUM_TOKENS
            return own, weights[a] + weights[b] + weights[c], (a, b, c)
        e, g = _STORE + store_cell, _TOKEN + store % _NUM_TOKENS
        if own < 0:
            f = _STORE_ALONE + joint
            return store, weights[e] + weights[f] + weights[g], (e, f, g)
        a, b, c, d = own_cell, _AGAINST_STORE + joint, _TOKEN + own % _NUM_TOKENS, _STORE_AGAINST + store_cell
        f, h = _AGAINST_OWN + joint, _OWN_AGAINST + own_cell
        for_own = weights[a] + weights[b] + weights[c] + weights[d]
        for_store = weights[e] + weights[f] + weights[g] + weights[h]
        return (own, for_own, (a, b, c, d)) if for_own >= for_store else (store, for_store, (e, f, g, h))

    def prefers(self, one: int, other: int) -> bool:
        """Whether a guess of the request's own text in cell `one` holds more often than one in `other`."""
        return self._weights[one] > self._weights[other]

    def chance(self, log_odds: float, depth: int, recent: int) -> float:
        """As a probability, at this place in the draft (0, 1, …) and with this success of late (0 … RECENTS - 1)."""
        return 1.0 / (
            1.0 + exp(-log_odds - self._weights[_DEPTH + (_PLACES[depth] if depth < 16 else 5)] - self._weights[_RECENT + recent])
        )

    def learn(self, cells: tuple[int, ...], chance: float, held: bool, depth: int, recent: int) -> None:
        """A guess that was given this chance met the truth."""
        step, weights = self.RATE * (held - chance), self._weights
        for i in cells:
            weights[i] += step
        weights[_DEPTH + (_PLACES[depth] if depth < 16 else 5)] += step
        weights[_RECENT + recent] += step

    @property
    def rate(self) -> float:
        """Tokens that a plain step's worth of cost has given lately; at least 1."""
        return max(1.0, self._tokens / self._cost)

    def spend(self, tokens: int, cost: float) -> None:
        """A step gave `tokens` for `cost`, in plain steps."""
        self._tokens = self._tokens * self._FADE + tokens
        self._cost = self._cost * self._FADE + cost
