"""The first word that Serve gives a replica it is about to stop, long before the user's own hook.

Promise: `on_stop` calls back at the moment the controller asks this replica to stop (scale-down, a rolling update, a drain whose
replacement runs), while its streams still run and for as long as its grace lasts; so the replica can hand them over instead of
being killed with them. Price: one attribute of Ray Serve's private replica object is wrapped, since 2.60 has no public hook:
`__del__` is called only after every ongoing request has ended or the grace has passed.
Source: `ReplicaActor.perform_graceful_shutdown` in ray/serve/_private/replica.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

__all__ = ["on_stop"]


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
