"""Whether drafting pays at all at the moment: found by trying, not by reckoning.

Promise: where drafts bring less than guessing, verifying and learning cost, they rest, and an engine with drafts is as fast as one
without, but for a short trial now and then. Price: a few hundred nanoseconds a step. Method: stretches of steps with and without
drafts that follow each other are compared in tokens a second, so that a busy machine slows both; apart for 1, 2 to 3, 4 to 7, …
running sequences, for a full batch has no time to spare where a lone request has.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

__all__ = ["Worth"]

_STRETCH = 8
"""Steps compared at once."""
_SOON, _LATE = 16, 1024
"""Steps from one trial to the next, while it is open which way is faster, and at most."""
_SHARE = 0.01
"""Of the time to the next trial, what a trial may cost: where drafts lose much, they are tried rarely."""
_MANY = 3
"""From this level on (4 sequences and more) an engine begins at rest, and tries after a while: verifying is dear there, and so is reading
all the prompts for the first trial."""
_WILDEST = 0.7
"""The logarithm of a ratio counts as this at most: the rest is a hiccup, or a text that repeats for once."""
_FADE = 0.2


@dataclass(slots=True)
class _Level:
    """What is known about one number of sequences."""

    gain: float = 0.05
    """Logarithm of the speed with drafts over that without: the average of the latest comparisons."""
    variance: float = 0.01
    num_compared: int = 1
    awake: bool = True
    """Whether this stretch has drafts."""
    on_trial: bool = False
    wait: int = _STRETCH
    """Steps to the next trial, or to the end of this one."""
    interval: int = _SOON
    tokens: float = 0.0
    seconds: float = 0.0
    catching_up_s: float = 0.0
    """Of a trial, its first step."""
    settled_rate: float = 0.0
    """Tokens a second before the trial."""
    settled_step_s: float = 0.0

    def step(self, num_tokens: int, seconds: float) -> None:
        """A step of this stretch gave so many tokens."""
        self.wait -= 1
        if self.wait < _STRETCH:  # the first step of a trial has to catch up with what it missed, and does not count
            self.tokens += num_tokens
            self.seconds += seconds
        else:
            self.catching_up_s = seconds
        if self.wait:
            return
        tokens, taken_s, self.tokens, self.seconds = self.tokens, self.seconds, 0.0, 0.0
        if not self.on_trial:
            self.settled_rate, self.settled_step_s = tokens / taken_s, taken_s / _STRETCH
            self.on_trial, self.awake, self.wait = True, not self.awake, _STRETCH + 1
            return
        ratio = log(tokens / taken_s / self.settled_rate)
        lost_s = taken_s - tokens / self.settled_rate + self.catching_up_s - self.settled_step_s
        self._compare(ratio if self.awake else -ratio, lost_s / self.settled_step_s)

    def _compare(self, ratio: float, num_lost: float) -> None:
        """A trial has ended, which cost the time of `num_lost` steps: learn from it, and choose how to go on."""
        error = max(-_WILDEST, min(_WILDEST, ratio)) - self.gain
        self.num_compared += 1
        fade = max(_FADE, 1.0 / self.num_compared)
        self.gain += fade * error
        self.variance += fade * (error * error - self.variance)
        doubt = sqrt(self.variance * fade)
        was, better = self.awake != self.on_trial, self.gain > 0.5 * doubt  # what is in doubt had better rest
        sure = abs(self.gain) > doubt
        self.interval = 2 * self.interval if sure and was == better else _SOON
        self.interval = min(max(self.interval, int(num_lost / _SHARE) if was == better else 0), _LATE)
        self.awake, self.on_trial, self.wait = better, False, max(self.interval, _STRETCH)


class Worth:
    """Tells before a step whether to draft, and learns after it.

    >>> worth, num_awake = Worth(), 0
    >>> for _ in range(4000):  # a full batch: drafts bring no tokens and take a tenth of the time
    ...     awake = worth.awake(16)
    ...     num_awake += awake
    ...     worth.observe(16, num_tokens=16, seconds=0.0022 if awake else 0.0020)
    >>> num_awake < 200
    True
    """

    def __init__(self) -> None:
        self._levels = [_Level() if n < _MANY else _Level(awake=False, wait=_STRETCH << n) for n in range(8)]

    def awake(self, num_sequences: int) -> bool:
        """Whether a step of so many sequences should draft."""
        return self._level(num_sequences).awake

    def observe(self, num_sequences: int, num_tokens: int, seconds: float) -> None:
        """A step without prompts gave `num_tokens` to `num_sequences` in `seconds`, guessing included."""
        if num_tokens and seconds > 0.0:  # a piece of a prompt gives none, and says nothing of drafts
            self._level(num_sequences).step(num_tokens, seconds)

    def _level(self, num_sequences: int) -> _Level:
        return self._levels[min(num_sequences.bit_length(), len(self._levels) - 1)]
