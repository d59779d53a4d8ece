"""How long will the answer be? Learnt from the answers before.

Promise: a prediction between 1 and the request's own limit, from the first request on; memory bounded. Price: some ten dictionary
look-ups per request, none per token. How: the mean over answers to prompts of about this length; times the factor by which answers
to this client and adapter are longer or shorter; times that of the same opening tokens, which tell one template from another; then
the mean of those alike in all this. Each is pulled towards the wider one before it until it has seen enough of its own (shrinkage,
as in James and Stein's estimator). Old answers fade, so that predictions follow a change of use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from math import log2

from serve.engine.request import Request

__all__ = ["LengthPredictor"]

PRIOR_LENGTH = 256.0
"""Tokens in an answer before any has been seen."""
WEIGHT = 4.0
"""Answers that the wider level counts for."""
FADE = 0.99
"""How much an answer counts when the next one at its level has come."""
STEPS = 8
"""Prompt lengths told apart between one and its double."""
OPENING = 32
"""Prompt tokens that name a template."""

Kind = tuple[object, ...]


class LengthPredictor:
    """Running means of answer lengths by kind of request.

    >>> short, long = (Request(id="x", prompt=(1,) * n, client="c") for n in (9, 900))
    >>> predictor = LengthPredictor()
    >>> for _ in range(40): predictor.learn(short, 5); predictor.learn(long, 50)
    >>> predictor.predict(short) < 10 < 45 < predictor.predict(long)
    True
    """

    def __init__(self, capacity: int = 8192) -> None:
        self._capacity = capacity
        self._seen: OrderedDict[Kind, tuple[float, float]] = OrderedDict()  # kind -> (weight, weighted lengths), least recently used first

    def __len__(self) -> int:
        """Kinds remembered."""
        return len(self._seen)

    def predict(self, request: Request) -> float:
        """Tokens that the whole answer will have, those emitted already included."""
        *_, (_, mean) = self._expected(request)
        return min(max(mean, 1.0, float(len(request.emitted))), float(request.sampling.max_tokens))

    def learn(self, request: Request, num_emitted: int) -> None:
        """A request has finished of itself after `num_emitted` tokens."""
        for kind, mean in list(self._expected(request)):
            unit = mean if kind[0] in _FACTORS else 1.0
            units, total = self._seen.pop(kind, (0.0, 0.0))
            self._seen[kind] = units * FADE + unit, total * FADE + num_emitted
        while len(self._seen) > self._capacity:
            self._seen.popitem(last=False)

    def _expected(self, request: Request) -> Iterator[tuple[Kind, float]]:
        """Kind after kind, from everyone to those much like this one: for a factor the mean before it, for others the mean after."""
        mean = PRIOR_LENGTH
        for kind in _kinds(request):
            units, total = self._seen.get(kind, (0.0, 0.0))
            if kind[0] in _FACTORS:
                yield kind, mean
                mean *= (total + WEIGHT * mean) / (units + WEIGHT * mean)
            else:
                mean = (total + WEIGHT * mean) / (units + WEIGHT)
                yield kind, mean


_FACTORS = ("owner", "opening")
"""Kinds that are longer or shorter than expected by so much; the others have means of their own."""


def _kinds(request: Request) -> tuple[Kind, ...]:
    length = len(request.prompt)
    octave, step = length.bit_length(), int(STEPS * log2(length))
    limit = request.sampling.max_tokens.bit_length()
    owner = (request.tenant, request.client, request.adapter)
    opening = hash(request.prompt[:OPENING])
    return (
        ("all",),
        ("octave", octave),
        ("step", step),
        ("limit", step, limit),
        ("owner", *owner),
        ("opening", *owner, opening),
        ("template", *owner, opening, step),
    )
