"""Checkpoints of a run: written by all workers in the background of the steps after, committed by the last of them, found by anyone.

Promise: a checkpoint exists once its `state.json` does, which is written last and lists every file with its size; so a half-written or
truncated one is never picked up, and the newest whole one is, by any number of workers. Nobody waits for another worker: each says on
storage that its part is there, and whoever finds all parts there commits. Local folders and s3:// alike.
Price: a copy of weights and optimizer in host memory while it is being written (train/elastic/pieces.py); the next checkpoint waits for
the one before. Source: the asynchronous two-phase checkpoints of CheckFreq (FAST '21); the commit marker is the manifest's idea.
"""

from __future__ import annotations

import json
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from pyarrow import fs as arrow_fs

from cluster.storage import resolve
from train.elastic.parts import SUFFIX, StoredParts, write_part
from train.elastic.pieces import Fragment, Piece, load, snapshot
from train.state import State

__all__ = ["Checkpoints", "Saved", "Saving", "newest", "restore"]

_MARKER = "state.json"
_KEPT = 2  # the newest, and the one before it should the newest prove unreadable
_RECENT = 8  # checkpoints that the cost of the next is judged by


class Saving(Protocol):
    """What a checkpoint needs of a stepper."""

    rank: int
    world_size: int
    precision: str

    def pieces(self) -> list[Piece]:
        """What this worker holds."""

    def publish(self) -> None:
        """Take over what was loaded into the pieces; all workers must call it."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A whole checkpoint."""

    uri: str
    state: State
    world_size: int
    """Workers that wrote it; any number can read it."""
    precision: str
    """Arithmetic of the run; whoever goes on with it must keep it."""


class Checkpoints:
    """One worker's hand in the checkpoints of a run."""

    def __init__(self, uri: str, stepper: Saving, attempt: str, expected_s: float | None = None) -> None:
        """`attempt` names the group of workers, so that what an earlier one left unfinished is never taken for part of theirs;
        `expected_s` is what a checkpoint costs as far as is known before the first."""
        self._uri, self._stepper, self._attempt = uri.rstrip("/"), stepper, attempt
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._costs: deque[float] = deque(maxlen=_RECENT)
        self._expected_s = expected_s
        self.last: State | None = None
        """What the last checkpoint begun holds."""
        self.blocked_s = 0.0
        """Seconds for which the loop has stood still for checkpoints, in all."""

    def save(self, state: State) -> None:
        """Copy what this worker holds, and write it in the background; all workers must call it, with the same state."""
        began = time.monotonic()
        self._wait()
        fragments = snapshot(self._stepper.pieces(), self._stepper.rank, self._stepper.world_size)
        self._pending = self._thread.submit(self._write, fragments, state, began)
        self.last = state
        self.blocked_s += time.monotonic() - began

    def settle(self) -> None:
        """Wait until this worker's part of the last checkpoint is in place. Once all workers have come back from this, it is committed."""
        began = time.monotonic()
        self._wait()
        self.blocked_s += time.monotonic() - began

    @property
    def cost_s(self) -> float | None:
        """Seconds from the copy to the last byte, the longest of the last few checkpoints; before the first, what was expected."""
        return max(self._costs, default=self._expected_s)

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, fragments: list[Fragment], state: State, began: float) -> None:
        rank, place = self._stepper.rank, f"{self._uri}/{state.window:08d}-step-{state.step}.{self._attempt}"
        filesystem, path = resolve(place)
        filesystem.create_dir(path, recursive=True)
        size = write_part(filesystem, f"{path}/{_part(rank)}{SUFFIX}", fragments)
        _put(filesystem, f"{path}/{_part(rank)}.json", {"bytes": size}, rank)
        self._commit_if_whole(filesystem, path, state)
        if rank == 0:
            _prune(filesystem, resolve(self._uri)[1], self._attempt)
        self._costs.append(time.monotonic() - began)

    def _commit_if_whole(self, filesystem: arrow_fs.FileSystem, path: str, state: State) -> None:
        """Commit if every worker's part is there. The last to look sees them all; should two see them, they write the same."""
        files = {}
        for rank in range(self._stepper.world_size):
            told = _get(filesystem, f"{path}/{_part(rank)}.json")
            if told is None:
                return
            files[f"{_part(rank)}{SUFFIX}"] = told["bytes"]
        data = {"state": state.to_json(), "world_size": self._stepper.world_size, "precision": self._stepper.precision, "files": files}
        _put(filesystem, f"{path}/{_MARKER}", data, self._stepper.rank)


def newest(uri: str) -> Saved | None:
    """The newest whole checkpoint under `uri`, or None."""
    filesystem, root = resolve(uri)
    for name in reversed(_names(filesystem, root)):
        if (data := _whole(filesystem, f"{root}/{name}")) is not None:
            return Saved(f"{uri.rstrip('/')}/{name}", State.from_json(data["state"]), data["world_size"], data["precision"])
    return None


def restore(saved: Saved, stepper: Saving) -> State:
    """Load a checkpoint into `stepper`, whoever wrote it; all workers must call it. Gives the state to go on from.

    Raises ValueError when it is of another model.
    """
    load(stepper.pieces(), StoredParts(saved.uri))
    stepper.publish()
    return saved.state


def _whole(filesystem: arrow_fs.FileSystem, path: str) -> dict[str, Any] | None:
    """What the marker of a checkpoint says, if there is one and every file that it lists has its size."""
    data = _get(filesystem, f"{path}/{_MARKER}")
    if data is None:
        return None
    there = filesystem.get_file_info([f"{path}/{name}" for name in data["files"]])
    whole = all(info.type == arrow_fs.FileType.File and info.size == size for info, size in zip(there, data["files"].values(), strict=True))
    return data if whole else None


def _prune(filesystem: arrow_fs.FileSystem, root: str, attempt: str) -> None:
    """Delete all but the newest whole checkpoints, and what this attempt is still writing."""
    whole = [name for name in _names(filesystem, root) if _whole(filesystem, f"{root}/{name}") is not None]
    kept = whole[-_KEPT:]
    for name in _names(filesystem, root):
        unfinished = name.endswith(f".{attempt}") and (not kept or name > kept[-1])
        if name not in kept and not unfinished:
            filesystem.delete_dir(f"{root}/{name}")


def _names(filesystem: arrow_fs.FileSystem, root: str) -> list[str]:
    """Folders of checkpoints, whole or not, in the order of the data that they are past: a run that undid steps goes on, not back."""
    found = filesystem.get_file_info(arrow_fs.FileSelector(root, allow_not_found=True))
    return sorted(info.base_name for info in found if "-step-" in info.base_name)


def _part(rank: int) -> str:
    return f"part-{rank:05d}"


def _put(filesystem: arrow_fs.FileSystem, path: str, data: dict[str, Any], rank: int) -> None:
    """Write a JSON file at once or not at all."""
    with filesystem.open_output_stream(f"{path}.writing-{rank}") as stream:
        stream.write(json.dumps(data).encode())
    filesystem.move(f"{path}.writing-{rank}", path)


def _get(filesystem: arrow_fs.FileSystem, path: str) -> dict[str, Any] | None:
    if filesystem.get_file_info(path).type != arrow_fs.FileType.File:
        return None
    with filesystem.open_input_stream(path) as stream:
        return dict(json.loads(stream.readall()))
