"""What a wider step costs, learnt from the steps themselves.

Promise: right for any step time that does not fall with the number of tokens, such as bfloat16 kernels that verify eight tokens for the
price of one and rise after that; a hiccup moves it little; a costly guess is not believed for ever. Price: a few microseconds a step.
Method: neighbouring steps of different widths are compared, so that what changes slowly (longer contexts, a busier machine) cancels;
the logarithm of their ratio corrects the increments between them (normalised least mean squares); what noise lets fall is read as flat.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise
from math import exp, log

__all__ = ["StepCost"]

_WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
"""Tokens in a step at which the increments meet; linear between them."""
_BEYOND = 2
"""A token is priced by the average cost of drafts so much longer than the usual ones: between the average and the marginal cost."""


class StepCost:
    """Logarithm of the step time as a rising line over the number of tokens.

    A drafted token that holds with probability a saves its sequence a share a of a step; all sequences of the step wait for its
    verification. So what it must earn is the step time it adds, as a share of the step, times the sequences: `verify_cost`.

    >>> cost = StepCost(prior_g=0.05)
    >>> for tokens in (1, 5, 9, 3, 17) * 80: cost.observe(tokens, 0.010 + 0.001 * tokens)
    >>> round(cost.verify_cost(1), 2)
    0.09
    """

    _FIRST_RATE, _RATE = 0.5, 0.02
    _WILDEST = 0.7
    """A ratio off by more than e to this is a hiccup: it counts as this."""
    _FADE = 0.05
    _FORGET = 0.001
    """Per step without a comparison, the increments go back this share of the way to their priors, so that drafts are tried again."""

    def __init__(self, prior_g: float = 0.05) -> None:
        """`prior_g`: the cost of one more token beside a single one, as a share of that step, until it is known."""
        heights = [log(1.0 + prior_g * (width - 1)) for width in _WIDTHS]
        self._priors = [high - low for low, high in pairwise(heights)]
        self._increments = list(self._priors)
        self._heights = heights  # sums of the increments, never falling
        self._last: tuple[int, float] | None = None
        self._num_compared = 0
        self._usual = 0.0  # tokens drafted for a sequence in the latest steps

    def observe(self, num_tokens: int, seconds: float, num_sequences: int = 1) -> None:
        """A step computed `num_tokens` tokens for `num_sequences` in `seconds`."""
        if seconds <= 0.0:
            return
        self._usual += self._FADE * (num_tokens / num_sequences - 1.0 - self._usual)
        now, before = (num_tokens, log(seconds)), self._last
        self._last = now
        if before is None:
            return
        (low, cheaper), (high, dearer) = sorted((before, now))
        crossed = self._crossed(low, high)
        if crossed:
            self._num_compared += 1
            error = dearer - cheaper - sum(share * self._increments[i] for i, share in crossed)
            step = max(self._RATE, self._FIRST_RATE / (1.0 + 0.2 * self._num_compared)) * max(-self._WILDEST, min(self._WILDEST, error))
            step /= sum(share * share for _, share in crossed)
            for i, share in crossed:
                self._increments[i] += step * share
        else:
            self._increments = [x + self._FORGET * (prior - x) for x, prior in zip(self._increments, self._priors, strict=True)]
        self._heights = list(accumulate((0.0, *accumulate(self._increments)), max))

    def ratio(self, num_tokens: int, num_more: int) -> float:
        """How many times longer a step takes with `num_more` tokens beside `num_tokens`."""
        return exp(self._height(num_tokens + num_more) - self._height(num_tokens))

    def verify_cost(self, num_sequences: int) -> float:
        """What a drafted token costs all that wait, in plain steps, when each of `num_sequences` drafts a little more than usual.

        Where longer drafts are dearer by the token, drafts grow until a token costs what it earns.
        """
        n, length = max(1, num_sequences), self._usual + _BEYOND
        return (exp(self._height(n * (1.0 + length)) - self._height(n)) - 1.0) / length

    def _height(self, num_tokens: float) -> float:
        """Logarithm of the time of a step, over that of a step of one token."""
        i = bisect_right(_WIDTHS, num_tokens) - 1
        if i == len(_WIDTHS) - 1:
            return self._heights[-1]
        low, high = self._heights[i], self._heights[i + 1]
        return low + (high - low) * (num_tokens - _WIDTHS[i]) / (_WIDTHS[i + 1] - _WIDTHS[i])

    @staticmethod
    def _crossed(low: int, high: int) -> list[tuple[int, float]]:
        """The increments between two widths, and how much of each lies between them."""
        found, at, last = [], min(low, _WIDTHS[-1]), min(high, _WIDTHS[-1])
        while at < last:
            i = bisect_right(_WIDTHS, at) - 1
            end = min(last, _WIDTHS[i + 1])
            found.append((i, (end - at) / (_WIDTHS[i + 1] - _WIDTHS[i])))
            at = end
        return found
