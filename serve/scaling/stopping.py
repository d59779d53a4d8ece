"""The first word that Serve gives a replica it is about to stop, long before the user's own hook.

Promise: `on_stop` calls back at the moment the controller asks this replica to stop (scale-down, a rolling update, a drain), while its
streams still run and for as long as its grace lasts; so the replica can hand them over (`leave_on_stop`) instead of being killed with them.
`leave_by` says until when: Serve stops a replica on a draining node at once if its grace is longer than the machine has, or when it counts
one too many, which may be long before a replacement serves; so there the machine's own end counts, and the grace (`GRACE_S`) outlasts every
notice.
Price: one attribute of Ray Serve's private replica object is wrapped, since 2.60 has no public hook: `__del__` is called only after every
ongoing request has ended or the grace has passed.
Source: `ReplicaActor.perform_graceful_shutdown` in ray/serve/_private/replica.py.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from cluster.preemption import LONGEST_NOTICE_S

__all__ = ["GRACE_S", "HANDOVER_S", "leave_by", "leave_on_stop", "on_stop"]

GRACE_S = LONGEST_NOTICE_S + 30.0
"""Serve kills a replica so long after it asked it to stop: never before its machine goes, since no machine goes later than its notice says;
the rest is for Serve and clocks."""
HANDOVER_S = 20.0
"""How long a replica on a machine that stays (scaled down, replaced) looks for places for its streams: another may wait for its own."""

KNOWN_S = 0.5
"""After so long a replica knows of the drain for which Serve stops it (`DrainWatch` looks five times a second)."""


def leave_on_stop(leave: Callable[[float], Any], drain_s: Callable[[], float | None]) -> None:
    """When Serve stops this replica, call `leave(deadline)` at once, so that it admits nothing more, and again when it is known whether its
    node drains: `drain_s` then says until when (see `leave_by`)."""

    def stopped(grace_s: float) -> None:
        asked_s = time.time()
        leave(asked_s + grace_s)
        known = threading.Timer(KNOWN_S, lambda: leave(leave_by(asked_s, grace_s, drain_s())))
        known.daemon = True
        known.start()

    on_stop(stopped)


def leave_by(now_s: float, grace_s: float, drain_s: float | None) -> float:
    """When (unix seconds) a replica that Serve stops now, to kill it after `grace_s`, has to be empty. Its node drains until `drain_s`
    (`math.inf`: at some time, so that it may go; None: it does not drain).

    >>> leave_by(1000.0, 150.0, None), leave_by(1000.0, 150.0, 1090.0)
    (1020.0, 1090.0)
    """
    given_s = HANDOVER_S if drain_s is None or math.isinf(drain_s) else drain_s - now_s
    return now_s + min(given_s, grace_s)


def on_stop(callback: Callable[[float], Any]) -> None:
    """Call `callback(grace_s)` once when Serve stops this replica; what still runs after `grace_s` seconds is killed.

    To be called in a replica's constructor; the call comes in the thread of the replica's own event loop, so it must not block.
    """
    worker = ray._private.worker.global_worker
    replica = worker.actors[worker.actor_id]._replica_impl
    stop = replica.perform_graceful_shutdown
    pending = [callback]

    async def perform_graceful_shutdown() -> None:
        while pending:  # the controller asks again after it has restarted
            pending.pop()(replica._deployment_config.graceful_shutdown_timeout_s)
        await stop()

    replica.perform_graceful_shutdown = perform_graceful_shutdown
