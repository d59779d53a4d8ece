"""When would a request that came now get its first token? Estimated from the streams there are, corrected by earlier errors.

Promise: `expect` simulates the queue ahead: each running stream leaves its place when its expected tokens are out, the waiting ones take
the places in order of arrival. Speeds and the share of their limits that answers use are learnt from the streams themselves. `margin_s` is
the largest of the last three hundred errors, so that hardly one request in a hundred waits longer than expected plus margin. Price: a heap
operation per stream and request. Without any observation it expects nothing, so nobody is refused before there is a reason.
Source: list scheduling (Graham 1969); the margin is conformal prediction's (Vovk et al. 2005) over a sliding window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heapreplace

__all__ = ["Expectation", "FirstToken", "Stream", "moved"]

RATE = 0.05
"""The weight of the newest observation in the running means."""
MOST = 4.0
"""How far above its mean an observation counts."""
NUM_ERRORS = 300
"""Errors that are remembered. In the overload of tests/serve/limits/test_admission.py, limit 2 s, answers of 16 to 112 tokens, the p99 of
those let in was 2.24 s with 100 of them and is 1.8 to 1.95 s with 300 (four seeds)."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a request can expect."""

    seconds: float
    """From now to its first token."""
    waits: bool
    """Whether it must wait for a place among the running."""


@dataclass(slots=True)
class Stream:
    """One choice in the making. Times are of one clock, in seconds."""

    num_prompt: int
    max_tokens: int
    entered_s: float
    expected: Expectation
    ahead: int = 0
    """Prompt tokens that were to be computed before its own when it came."""
    num_tokens: int = 0
    first_s: float | None = None
    last_s: float = 0.0


class FirstToken:
    """Learns how fast streams are, and expects."""

    def __init__(self) -> None:
        self.token_s = self.prompt_s = 0.0
        self.share = 1.0
        """The share of its limit that an answer uses."""
        self._errors: deque[float] = deque(maxlen=NUM_ERRORS)

    def expect(self, streams: Iterable[Stream], slots: int, num_prompt: int) -> Expectation:
        """For a prompt of `num_prompt` tokens behind `streams` (in order of arrival), of which `slots` can run at once."""
        if slots < 1:
            return Expectation(0.0, waits=True)
        waiting: list[Stream] = []
        left: list[float] = []
        for stream in streams:
            if stream.first_s is None:
                waiting.append(stream)
            else:
                left.append(self._left_s(stream))
        left.sort()
        ends = (left + [0.0] * slots)[:slots] if len(left) < slots else left[:slots]
        heapify(ends)
        for more_s in left[slots:]:  # more than can run: places were lost
            heapreplace(ends, ends[0] + more_s)
        computing = num_prompt
        for stream in waiting:
            computing += stream.num_prompt if ends[0] == 0.0 else 0
            heapreplace(ends, ends[0] + stream.num_prompt * self.prompt_s + self._left_s(stream))
        waits = ends[0] > 0.0
        return Expectation(ends[0] + (num_prompt if waits else computing) * self.prompt_s, waits)

    def margin_s(self, streams: Iterable[Stream], now_s: float) -> float:
        """How much longer than expected it may take, from experience, that of those who still wait included."""
        late = (now_s - stream.entered_s - stream.expected.seconds for stream in streams if stream.first_s is None)
        return max([0.0, *self._errors, *late])

    def heard(self, stream: Stream, num_tokens: int, now_s: float) -> None:
        """So many tokens more of this stream."""
        if stream.first_s is None:
            stream.first_s = now_s
            took_s = now_s - stream.entered_s
            if self.prompt_s:  # of those who did not wait too, so that an outage is forgotten when nobody may wait
                self._errors.append(took_s - stream.expected.seconds)
            if stream.num_prompt and not stream.expected.waits:
                self.prompt_s = moved(self.prompt_s, took_s / (stream.num_prompt + stream.ahead))
        else:
            self.token_s = moved(self.token_s, (now_s - stream.last_s) / num_tokens)
        stream.num_tokens += num_tokens
        stream.last_s = now_s

    def ended(self, stream: Stream) -> None:
        """It came to its own end (and was not given up): how much of its limit it used."""
        self.share += RATE * (stream.num_tokens / stream.max_tokens - self.share)

    def _left_s(self, stream: Stream) -> float:
        """Until its last token, from its first or its latest; at least one more, for it has not ended."""
        return max(stream.max_tokens * self.share - stream.num_tokens, 1.0) * self.token_s


def moved(mean: float, value: float) -> float:
    """The running mean; what is far above it (a stream that went on elsewhere) counts as MOST times the mean."""
    return mean + RATE * (min(value, MOST * mean) - mean) if mean else value
