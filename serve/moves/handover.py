"""Move a request's KV, or compute it again? A pure choice, per request, with its reason; and when the copying should come to its end.

Promise: `decide` chooses what interrupts the stream for less time, among what fits before the deadline; the same figures give the same
choice. Recomputing always fits, since the gateway's record needs no source. Price: arithmetic.

With b bytes to send at rate w, which k streams that leave together share, n tokens known, prefill at p tokens/s, and a call's delay d:

    gap(recompute) = d + (n - cached) / p          nobody decodes while the destination computes what the source had
    gap(kv)        = 2 d + block / p               decoding goes on while the blocks travel; only the last stage stops it
    time(kv)       = stages x d + k b / w          must end before the deadline

After: pre-copy migration of virtual machines (Clark et al., NSDI 2005), for KV in Llumnix (arXiv 2406.03243): stages while the
source goes on, each as long as what was added during the one before, the last one short.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Decision", "Link", "MoveKv", "Rate", "Situation", "decide", "is_last"]

MoveKv = Literal["auto", "always", "never"]
"""auto: whatever pauses the stream for less; always: KV wherever it fits before the deadline; never: recompute."""
CALL_S = 0.01
"""Delay of one call between two replicas over Ray, an object of one MiB included (measured: 3 ms without, 10 ms with it)."""
MARGIN_S = 1.0
"""This long before the deadline nothing is begun any more, and what is still here is given up: machines are taken early, too."""
NUM_STAGES = 3
"""Calls a move takes at least: to ask what there is, the copy, and the last stage."""
SHORT_S = 0.25
"""After a stage this short the next is the last: a stream adds a block or two meanwhile, and pauses only for these."""
FEW_BLOCKS = 1
"""After a stage that brought no more the next is the last, however long it took: another one would not shorten the pause."""
LEARN_BYTES = 1 << 20
"""Less says more about the delay of a call than about the link."""
MAX_STAGES = 8
"""After so many the next is the last however much is left: the source is faster than the link."""


class Rate:
    """A measured rate per second, the newest measurements counting most; before any, a guess.

    >>> rate = Rate(100.0)
    >>> rate.observe(1000.0, 1.0); rate.per_s > 900.0
    True
    """

    _HALF_LIFE_S = 2.0  # observed so much longer, an observation weighs half

    def __init__(self, guess_per_s: float) -> None:
        self._amount, self._seconds = guess_per_s * 0.01, 0.01  # a guess weighs ten milliseconds

    def observe(self, amount: float, seconds: float) -> None:
        """So much was done in so long."""
        kept = 0.5 ** (seconds / self._HALF_LIFE_S)
        self._amount = self._amount * kept + amount
        self._seconds = self._seconds * kept + seconds

    @property
    def per_s(self) -> float:
        """What a second does."""
        return self._amount / max(self._seconds, 1e-9)


class Link:
    """The rate of a link that several transfers share: what they carried together, by the time in which one of them carried something.

    Two that get 3 MB each in the same second have seen a link of 6 MB a second, not of 3.

    >>> link = Link(1e6)
    >>> link.arrived(3_000_000, 0.0, 1.0); link.arrived(3_000_000, 0.0, 1.0)
    >>> 5.9e6 < link.per_s < 6e6
    True
    """

    def __init__(self, guess_per_s: float) -> None:
        self.rate = Rate(guess_per_s)
        self._counted_s = -math.inf

    def arrived(self, num_bytes: int, since_s: float, now_s: float) -> None:
        """A transfer has brought so much since a time, on the clock of all the others."""
        if num_bytes >= LEARN_BYTES:
            self.rate.observe(num_bytes, now_s - max(since_s, self._counted_s))  # time that another has counted is not counted twice
            self._counted_s = now_s

    @property
    def per_s(self) -> float:
        """Bytes that all transfers together get in a second."""
        return self.rate.per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a choice depends on: one request, the link and the destination."""

    num_tokens: int
    """Tokens known at the source: the prompt and what was emitted."""
    num_blocks: int
    """Full blocks of them that the source has computed."""
    num_missing: int
    """Of these, blocks that the destination has not (a prefix that it shares with others need not travel)."""
    block_size: int
    """Tokens per block."""
    block_bytes: int
    bytes_per_s: float
    """The link's rate, measured: what all that share it get together."""
    tokens_per_s: float
    """Prompt tokens that the destination computes in a second, measured."""
    num_leaving: int
    """Streams that leave the source together and share the link."""
    left_s: float
    """Seconds until the source is gone."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How a request moves, and why."""

    how: Literal["kv", "recompute"]
    reason: str
    """For people and for the journal."""


def decide(s: Situation, move_kv: MoveKv = "auto") -> Decision:
    """KV or recompute.

    >>> long = Situation(num_tokens=2000, num_blocks=124, num_missing=124, block_size=16, block_bytes=524_288, bytes_per_s=5e8,
    ...     tokens_per_s=1000.0, num_leaving=4, left_s=30.0)
    >>> decide(long)
    Decision(how='kv', reason='65.0 MB in 0.55 s while decoding goes on; computing 2000 tokens again would stop it for 2.01 s')
    >>> from dataclasses import replace
    >>> decide(replace(long, left_s=1.5)).reason
    'deadline: 65.0 MB take 0.55 s, and 0.50 s are left'
    """
    if move_kv == "never":
        return Decision("recompute", "KV is not to be moved (move_kv: never)")
    if s.num_blocks == 0:
        return Decision("recompute", "it has no full block of KV")
    num_bytes = s.num_missing * s.block_bytes
    kv_s = NUM_STAGES * CALL_S + num_bytes * max(s.num_leaving, 1) / s.bytes_per_s
    usable_s = max(s.left_s - MARGIN_S, 0.0)
    if kv_s > usable_s:
        return Decision("recompute", f"deadline: {num_bytes / 1e6:.1f} MB take {kv_s:.2f} s, and {usable_s:.2f} s are left")
    again = s.num_tokens - (s.num_blocks - s.num_missing) * s.block_size
    recompute_gap_s = CALL_S + again / s.tokens_per_s
    kv_gap_s = 2 * CALL_S + s.block_size / s.tokens_per_s
    if recompute_gap_s <= kv_gap_s and move_kv == "auto":
        return Decision("recompute", f"{again} tokens are computed again in {recompute_gap_s:.3f} s, as soon as a last stage ends")
    return Decision(
        "kv", f"{num_bytes / 1e6:.1f} MB in {kv_s:.2f} s while decoding goes on; computing {again} tokens again "
        f"would stop it for {recompute_gap_s:.2f} s"
    )  # fmt: skip


def is_last(num_stages: int, stage_s: float, num_blocks: int, left_s: float) -> bool:
    """Whether the stage after `num_stages`, the latest of which took `stage_s` for `num_blocks`, is to be the last: little is left to come,
    or little time.

    >>> is_last(1, 0.1, 99, 30.0), is_last(1, 2.0, 99, 30.0), is_last(1, 2.0, 99, 3.5), is_last(8, 2.0, 99, 30.0), is_last(2, 2.0, 1, 30.0)
    (True, False, True, True, True)
    """
    little = stage_s <= SHORT_S or num_blocks <= FEW_BLOCKS
    return little or num_stages >= MAX_STAGES or left_s - MARGIN_S < 2 * stage_s
