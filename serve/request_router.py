"""The Ray Serve router that honours the gateway's choice: one per deployment in each process that has a handle to it.

Promise: a request goes to the replica named in its `replica_id` argument and, if that one has gone by then, to the one
`serve.router.choose` prefers among those left; never to a draining node. Every change of replicas reaches the board.
Price: none beyond Serve's own. Source: Ray Serve 2.60's request router interface. Serve pickles this module by value, so its
globals would be copies: what is shared with the gateway (the board) is reached through its own module, never imported by name.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve import router
from serve.router import Place

__all__ = ["ChosenReplica"]


class ChosenReplica(RequestRouter):
    """Routes to the replica that the request names in its `replica_id` argument."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        router.BOARD.register(self._deployment_id.name, self)

    def places(self, streams: Counter[str]) -> list[Place]:
        """This deployment's replicas; the load is Serve's count where it has one (other gateways' streams too), else ours."""
        found = []
        for replica_id, replica in list(self.curr_replicas.items()):
            name = replica_id.unique_id
            seen = self.replica_queue_len_cache.get(replica_id)
            load = max(seen or 0, streams.get(name, 0))
            found.append(Place(self._deployment_id.name, name, replica.node_id, load, replica.max_ongoing_requests))
        return found

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve's news of which replicas run."""
        super().update_replicas(replicas)
        router.BOARD.changed()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Serve's news of a death."""
        super().on_replica_actor_died(replica_id)
        router.BOARD.changed()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The named replica first, then what `choose` prefers; nothing on a draining node."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # without it Serve would spin while there is no candidate
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        staying = [place for place in self.places(Counter()) if place.replica_id in by_name]
        named = "" if pending_request is None else pending_request.kwargs.get("replica_id", "")
        wanted = [place for place in staying if place.replica_id == named and place.node_id not in router.BOARD.draining()]
        other = router.BOARD.among(staying)
        ranks = [*wanted, *([other.place] if other else [])]
        return [[by_name[place.replica_id]] for place in ranks]
