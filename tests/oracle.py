"""A double of a drafter that knows the answer: laws need drafts that hold, and drafts that fail, for any number of tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence


class Oracle:
    """Drafts what will be emitted, and errs now and then."""

    def __init__(self, text: Sequence[int], rng: random.Random) -> None:
        self._text, self._rng, self._seen = text, rng, 0

    def observe(self, tokens: Sequence[int]) -> None:
        self._seen += len(tokens)

    def propose(self, verify_cost: float) -> list[int]:
        guesses = self._text[self._seen :][: self._rng.randrange(9)]
        return [guess if self._rng.random() < 0.85 else (guess + 1) % 400 for guess in guesses]

    def judge(self, num_accepted: int) -> None:
        pass

    def recycle(self, tokens: Sequence[int], successors: Sequence[int]) -> None:
        pass
