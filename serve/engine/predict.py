"""How long will the answer be? Learnt from the answers before.

Promise: a prediction between 1 and the request's own limit, from the first request on; memory bounded. Price: a few dictionary
look-ups per request, none per token. How: means at five levels, each narrower than the one before (everyone; the client; its adapter
and limit; the prompt's length; the prompt's opening tokens, which tell one template from another), each pulled towards the wider one
until it has seen enough of its own (shrinkage, as in James and Stein's estimator). Old answers fade: the mean follows a change of use.
"""

from __future__ import annotations

from collections import OrderedDict

from serve.engine.request import Request

__all__ = ["LengthPredictor"]

PRIOR_LENGTH = 256.0
"""Tokens in an answer before any has been seen."""
WEIGHT = 4.0
"""Answers that the wider level counts for."""
FADE = 0.99
"""How much an answer counts when the next one at its level has come."""
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
        mean = PRIOR_LENGTH
        for kind in _kinds(request):
            count, total = self._seen.get(kind, (0.0, 0.0))
            mean = (total + WEIGHT * mean) / (count + WEIGHT)
        return min(max(mean, 1.0, float(len(request.emitted))), float(request.sampling.max_tokens))

    def learn(self, request: Request, num_emitted: int) -> None:
        """A request has finished of itself after `num_emitted` tokens."""
        for kind in _kinds(request):
            count, total = self._seen.pop(kind, (0.0, 0.0))
            self._seen[kind] = count * FADE + 1.0, total * FADE + num_emitted
        while len(self._seen) > self._capacity:
            self._seen.popitem(last=False)


def _kinds(request: Request) -> tuple[Kind, ...]:
    """From everyone to requests much like this one; each begins with its level, so that no two levels meet."""
    client = (request.tenant, request.client)
    limit = request.sampling.max_tokens.bit_length()
    task = (*client, request.adapter, limit)
    length = len(request.prompt).bit_length()
    opening = hash(request.prompt[:OPENING])
    return (0,), (1, *client), (2, *task), (3, *task, length), (4, *task, opening)
