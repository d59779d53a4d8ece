"""How many replicas the load needs: a pure function of what the service sees, with its reason.

Promise: `target_replicas` follows the load up at once and down only after it has been low for a while; a queue that would break the
time to first token counts as load. The target it returns is also what it must be handed the next time (Serve's policy state).
It counts replicas that serve; what is kept in reserve against preemption is placement's business.
Price: arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.settings import settings

__all__ = ["AutoscaleSettings", "Load", "Target", "target_replicas"]


@settings
class AutoscaleSettings:
    """What a replica can do, and how the target follows the load."""

    replica_tokens_per_s: float = 640.0
    """Output tokens a second that one replica sustains, all its streams together."""
    utilization: float = 0.8
    """Share of a replica's rate that is planned for; the rest absorbs bursts."""
    drain_queue_s: float = 300.0
    """A queue that forms although every replica asked for serves is to be gone within this time: longer than a cold start, or the help
    comes when nobody needs it any more."""
    min_replicas: int = 0
    """Never fewer; 0 scales to nothing when nobody asks."""
    max_replicas: int = 1000
    """Never more."""
    scale_down_after_s: float = 300.0
    """How long a lower target must have held before replicas are given up: longer than a cold start."""

    def __post_init__(self) -> None:
        if not self.replica_tokens_per_s > 0 or not 0 < self.utilization <= 1:
            raise ValueError("replica_tokens_per_s must be above 0, and utilization above 0 and at most 1")
        if not self.drain_queue_s > 0 or self.scale_down_after_s < 0:
            raise ValueError("drain_queue_s must be above 0, scale_down_after_s not negative")
        if not 0 <= self.min_replicas <= self.max_replicas:
            raise ValueError(f"min_replicas: is {self.min_replicas}; must lie between 0 and max_replicas ({self.max_replicas})")


@dataclass(frozen=True, slots=True)
class Load:
    """What the service sees, since the last look or over a short window."""

    tokens_per_s: float
    """Output tokens asked for: arrivals times their expected length; where that is unknown, tokens served."""
    streams: float = 0.0
    """Requests being served."""
    queued: float = 0.0
    """Requests waiting for a replica."""
    queued_tokens: float = 0.0
    """Output tokens that they are expected to need."""
    ready: int | None = None
    """Replicas that serve; while they are fewer than the target, a queue says nothing about the target. None: all of them."""


@dataclass(frozen=True, slots=True)
class Target:
    """How many replicas should serve, and why; with the memory that the next decision needs."""

    num_replicas: int
    reason: str = "at the start"
    peak: int = 0
    """The highest need since `since_s`: what a scale-down goes to."""
    since_s: float = 0.0
    """Since when the need has been below the target."""


def target_replicas(load: Load, before: Target, settings: AutoscaleSettings, now_s: float) -> Target:
    """How many replicas the load needs now.

    >>> rate = AutoscaleSettings(replica_tokens_per_s=1000, utilization=0.8)
    >>> target_replicas(Load(tokens_per_s=4000), Target(1), rate, 0.0).num_replicas
    5
    """
    rate = settings.replica_tokens_per_s * settings.utilization
    steady, complete = load.tokens_per_s / rate, load.ready is None or load.ready >= before.num_replicas
    backlog = load.queued_tokens / (rate * settings.drain_queue_s) if complete else 0.0
    need = min(max(math.ceil(steady + backlog - 1e-9), settings.min_replicas), settings.max_replicas)
    why = f"{load.tokens_per_s:.0f} tokens/s at {rate:.0f} a replica" + (f", and {load.queued:.0f} waiting" if load.queued else "")
    if need >= before.num_replicas:
        return Target(need, why, need, now_s)
    peak = max(need, before.peak) if before.peak < before.num_replicas else need
    since_s = before.since_s if before.peak < before.num_replicas else now_s
    if now_s - since_s >= settings.scale_down_after_s:
        return Target(peak, f"{why}; lower for {now_s - since_s:.0f} s", peak, now_s)
    return Target(before.num_replicas, f"{why}; {need} would do, kept for {settings.scale_down_after_s:.0f} s", peak, since_s)
