"""Short notes between the processes of a service: what a gateway or a replica reports, what has been decided and why.

Promise: a note is what its writer last said, with the time; whoever reads takes the fresh ones. Notes live in the memory of the
cluster's GCS, the one place that every process of a cluster can reach already, in a key space of our own; they go with it.
Price: half a millisecond per note; meant for one a second per process and some kilobytes each, not for data.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled, without stubs

__all__ = ["Bulletin", "Poster"]

FORGET_S = 600.0
_SPACE = b"sterna"
_RPC_TIMEOUT_S = 5.0
_log = logging.getLogger(__name__)


class Bulletin:
    """Notes by topic and writer."""

    def __init__(self, gcs_address: str | None = None) -> None:
        self._client = GcsClient(address=gcs_address or ray.get_runtime_context().gcs_address)

    def post(self, topic: str, writer: str, note: Mapping[str, Any]) -> None:
        """Replace this writer's note on a topic."""
        text = json.dumps({**note, "time_s": time.time()}).encode()
        self._client.internal_kv_put(_key(topic, writer), text, True, _SPACE, timeout=_RPC_TIMEOUT_S)

    def read(self, topic: str, *, max_age_s: float | None = None) -> dict[str, dict[str, Any]]:
        """Writer -> note, those of the last `max_age_s` seconds; each has its `time_s` (unix seconds).

        With an age given, what is older than `FORGET_S` is taken down: its writer is gone.
        """
        keys = self._client.internal_kv_keys(_key(topic, ""), _SPACE, timeout=_RPC_TIMEOUT_S)
        found = self._client.internal_kv_multi_get(keys, _SPACE, timeout=_RPC_TIMEOUT_S) if keys else {}
        notes = {key.decode().partition("/")[2]: json.loads(text) for key, text in found.items()}
        if max_age_s is None:
            return notes
        now_s = time.time()
        for writer in [writer for writer, note in notes.items() if now_s - note["time_s"] > max(FORGET_S, max_age_s)]:
            self.remove(topic, writer)
        return {writer: note for writer, note in notes.items() if now_s - note["time_s"] <= max_age_s}

    def remove(self, topic: str, writer: str) -> None:
        """Take a note down."""
        self._client.internal_kv_del(_key(topic, writer), False, _SPACE, timeout=_RPC_TIMEOUT_S)


class Poster:
    """Posts what `report` returns, every `interval_s`, from a daemon thread, until `close`."""

    def __init__(
        self, topic: str, writer: str, report: Callable[[], Mapping[str, Any]], *, interval_s: float = 1.0, bulletin: Bulletin | None = None
    ) -> None:
        self._topic, self._writer, self._report, self._interval_s = topic, writer, report, interval_s
        self._bulletin = bulletin or Bulletin()
        self._closed = threading.Event()
        threading.Thread(target=self._run, name=f"poster-{topic}", daemon=True).start()

    def close(self) -> None:
        """Post no more, and take the note down."""
        self._closed.set()
        self._try(lambda: self._bulletin.remove(self._topic, self._writer))

    def _run(self) -> None:
        self._post()
        while not self._closed.wait(self._interval_s):
            self._post()

    def _post(self) -> None:
        self._try(lambda: self._bulletin.post(self._topic, self._writer, self._report()))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # Ray's RPC errors have no common type; the GCS may be restarting
            _log.warning("no note on %s for now: %s", self._topic, error)


def _key(topic: str, writer: str) -> bytes:
    return f"{topic}/{writer}".encode()
