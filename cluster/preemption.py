"""Is my node draining, and until when: the one upward channel from the machines to the work that runs on them.

Promise: what Ray's GCS knows about drains is known here within `interval_s` (0.2 s by default), on any node, in a replica,
a training worker or a process that is no Ray driver at all; a GCS that does not answer for a while leaves the last answer
standing and is asked again. Price: one GCS call of about half a millisecond per interval and watching process, one thread.
Source: Ray's node drain protocol (`ray drain-node`), the same one Ray Serve and Ray Train read.

Deadlines are unix times: the drain protocol's own milliseconds where nodes are listed, seconds (like `time.time()`) where
one is waited for. `math.inf` means draining with no deadline; `None` means not draining.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled, without stubs

from cluster.announcement import announced
from cluster.bulletin import Bulletin

__all__ = ["LONGEST_NOTICE_S", "DrainWatch", "drain", "draining_nodes", "my_deadline", "node_addresses"]

LONGEST_NOTICE_S = 120.0
"""The longest of the clouds' notices of an interruption: AWS's. Google Cloud and Azure give 30 s (cluster/metadata.py)."""
LOOK_S = 1.0
"""How often a watch looks for announcements."""
_RPC_TIMEOUT_S = 5.0
_log = logging.getLogger(__name__)


def draining_nodes(gcs_address: str | None = None) -> dict[str, int | None]:
    """Node id (hex) -> drain deadline in unix milliseconds (None: no deadline), for every living node that drains."""
    return _ask(_client(gcs_address))


def my_deadline() -> float | None:
    """When the node of this process will be gone, in unix seconds: None if it is not draining, `math.inf` if no deadline was given."""
    return _deadlines(draining_nodes()).get(ray.get_runtime_context().get_node_id())


def node_addresses(gcs_address: str | None = None) -> dict[str, str]:
    """Node id (hex) -> IP address, for every living node."""
    nodes = _client(gcs_address).get_all_node_info(timeout=_RPC_TIMEOUT_S)
    return {node_id.hex(): node.node_manager_address for node_id, node in nodes.items() if node.state == 0}  # 0: ALIVE


def drain(node_id: str, reason: str, deadline_s: float | None, *, gcs_address: str | None = None) -> None:
    """Tell Ray that the node `node_id` (hex) will be gone in `deadline_s` seconds from now (None: at some time).

    Ray places nothing new there and does not stop what runs, but a draining node that has become idle (no leased worker, no
    pinned object) leaves the cluster by itself. A later call replaces the deadline. `reason` is for people.
    Raises ValueError when no living node has that id.
    """
    client = _client(gcs_address)
    if node_id not in node_addresses(gcs_address):
        raise ValueError(f"{node_id}: no living Ray node has this id; `ray list nodes` shows the ids (hexadecimal)")
    deadline_ms = 0 if deadline_s is None else int((time.time() + deadline_s) * 1000)
    from ray.core.generated import autoscaler_pb2

    preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, refusal = client.drain_node(node_id, preemption, reason, deadline_ms, timeout=_RPC_TIMEOUT_S)
    if not accepted:
        raise RuntimeError(f"{node_id}: Ray refused to drain this node: {refusal}")


class DrainWatch:
    """Watches the drain state from a daemon thread; use it as a context manager, or call `close`.

    `deadline` and `nodes` are always at hand without a call to anyone. `add_callback` runs a function (in the watch's
    thread) as soon as this node drains, and again whenever its deadline comes nearer; `wait` blocks for the drain; `drained` awaits it.
    """

    def __init__(
        self, *, interval_s: float = 0.2, node_id: str | None = None, gcs_address: str | None = None, announcements: bool = False
    ) -> None:
        """`node_id` defaults to the node of this process; with both ids given, no Ray connection is needed. With `announcements` it looks
        once a second for nodes that will be gone and do not drain yet, too."""
        self.node_id = node_id or ray.get_runtime_context().get_node_id()
        self._client = _client(gcs_address)
        self._interval_s = interval_s
        self._nodes: dict[str, float] = {}
        self._board = Bulletin(gcs_address) if announcements else None
        self._announced: dict[str, float] = {}
        self._looked_s = -math.inf
        self._callbacks: list[Callable[[float], Any]] = []
        self._told: float | None = None
        """The deadline that the callbacks know; None: they have not been called."""
        self._lock = threading.Lock()  # guards the two: whoever is added while a drain is seen hears of it exactly once
        self._seen = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drain-watch", daemon=True)
        self._poll()  # so that a watch made on a node that drains already knows it at once
        self._thread.start()

    @property
    def deadline(self) -> float | None:
        """When this node will be gone (unix seconds): None if not draining, `math.inf` if no deadline was given."""
        return self._nodes.get(self.node_id)

    @property
    def nodes(self) -> dict[str, float]:
        """Every draining node's id and deadline (unix seconds, `math.inf` for none)."""
        return dict(self._nodes)

    @property
    def announced(self) -> dict[str, float]:
        """With `announcements`: the id and end (unix seconds) of every node that has been given notice and does not drain yet."""
        return {node: deadline_s for node, deadline_s in self._announced.items() if node not in self._nodes}

    def add_callback(self, callback: Callable[[float], Any]) -> None:
        """Call `callback(deadline)` when this node starts to drain (at once if it does already), and again when its deadline comes nearer:
        a drain without one may be followed by one that has it."""
        with self._lock:
            self._callbacks.append(callback)
            told = self._told
        if told is not None:
            callback(told)

    def remove_callback(self, callback: Callable[[float], Any]) -> None:
        """Call it no more."""
        with self._lock:
            self._callbacks.remove(callback)

    def wait(self, timeout_s: float | None = None) -> float | None:
        """Block until this node drains; its deadline, or None when `timeout_s` passed or the watch was closed first."""
        self._seen.wait(timeout_s)
        return self.deadline

    async def drained(self) -> float:
        """The deadline, once this node drains."""
        loop, seen = asyncio.get_running_loop(), asyncio.Event()

        def tell(_: float) -> None:
            loop.call_soon_threadsafe(seen.set)

        self.add_callback(tell)
        try:
            await seen.wait()
        finally:
            self.remove_callback(tell)
        return self._nodes.get(self.node_id, math.inf)

    def close(self) -> None:
        """Stop watching; what was known stays readable."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(_RPC_TIMEOUT_S)

    def __enter__(self) -> DrainWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closed.wait(self._interval_s):
            self._poll()
        self._seen.set()  # nobody shall wait for a watch that has ended

    def _poll(self) -> None:
        try:
            self._nodes = _deadlines(_ask(self._client))
            if self._board is not None and time.monotonic() - self._looked_s >= LOOK_S:
                self._announced, self._looked_s = announced(self._board), time.monotonic()
        except Exception as error:  # Ray's RPC errors have no common type; the GCS may be restarting
            _log.warning("drain state unknown for now, asking again in %.1f s: %s", self._interval_s, error)
            return
        deadline = self._nodes.get(self.node_id)
        with self._lock:
            if deadline is None or (self._told is not None and deadline >= self._told):
                return
            callbacks, self._told = list(self._callbacks), deadline
        self._seen.set()
        for callback in callbacks:
            try:
                callback(deadline)
            except Exception:
                _log.exception("a drain callback failed; the watch goes on")


def _client(gcs_address: str | None) -> Any:
    return GcsClient(address=gcs_address or ray.get_runtime_context().gcs_address)


def _ask(client: Any) -> dict[str, int | None]:
    return {_hex(node): deadline or None for node, deadline in client.get_draining_nodes(timeout=_RPC_TIMEOUT_S).items()}


def _hex(node: Any) -> str:
    return node if isinstance(node, str) else node.hex()


def _deadlines(nodes: dict[str, int | None]) -> dict[str, float]:
    return {node: math.inf if deadline is None else deadline / 1000 for node, deadline in nodes.items()}
