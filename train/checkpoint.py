"""Checkpoints of a run: written by all workers, committed by one, found again by anyone.

Promise: a checkpoint exists once its `state.json` does, which is written last and lists every file with its size; so a
half-written or truncated one is never picked up, and the newest whole one is. Local folders and s3:// alike.
Price: each worker writes its part to local disk and copies it to the shared place. Source: DeepSpeed's own
sharded files; the commit marker is the manifest's idea (cluster/artifact.py).
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pyarrow import fs as arrow_fs

from cluster.storage import copy_tree, resolve
from train.loop import State

__all__ = ["Saved", "Saving", "newest", "restore", "save"]

_MARKER = "state.json"
_KEPT = 2  # the newest, and the one before it should the newest prove unreadable


class Saving(Protocol):
    """What a checkpoint needs of a stepper."""

    rank: int
    world_size: int
    precision: str

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...

    def barrier(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Saved:
    """A whole checkpoint."""

    uri: str
    state: State
    world_size: int
    precision: str
    """Arithmetic of the run; whoever goes on with it must keep it."""


def save(uri: str, stepper: Saving, state: State) -> Saved:
    """Write the checkpoint of `state` under the folder `uri`; all workers must call it, with the same state."""
    place = f"{uri.rstrip('/')}/step-{state.step:08d}"
    with tempfile.TemporaryDirectory(prefix="sterna-checkpoint-") as scratch:
        stepper.save(Path(scratch))
        copy_tree(scratch, place)
    stepper.barrier()  # every part is in place
    if stepper.rank == 0:
        _commit(place, state, stepper)
        _prune(uri)
    stepper.barrier()
    return Saved(place, state, stepper.world_size, stepper.precision)


def newest(uri: str) -> Saved | None:
    """The newest whole checkpoint under `uri`, or None."""
    filesystem, root = resolve(uri)
    for name in reversed(_names(filesystem, root)):
        marker = f"{root}/{name}/{_MARKER}"
        if filesystem.get_file_info(marker).type != arrow_fs.FileType.File:
            continue
        with filesystem.open_input_stream(marker) as stream:
            data = json.loads(stream.readall())
        if _sizes(filesystem, f"{root}/{name}") == data["files"]:
            return Saved(f"{uri.rstrip('/')}/{name}", State.from_json(data["state"]), data["world_size"], data["precision"])
    return None


def restore(saved: Saved, stepper: Saving) -> State:
    """Load a checkpoint into `stepper`; all workers must call it. Gives the state to go on from.

    Raises ValueError when the checkpoint is of another number of workers.
    """
    if saved.world_size != stepper.world_size:
        raise ValueError(
            f"{saved.uri}: was saved by {saved.world_size} workers, this run has {stepper.world_size}; "
            f"run with {saved.world_size} workers, or into another --output"
        )
    if "://" not in saved.uri:
        stepper.load(Path(saved.uri))
        return saved.state
    with tempfile.TemporaryDirectory(prefix="sterna-checkpoint-") as scratch:
        copy_tree(saved.uri, scratch)
        stepper.load(Path(scratch))
    return saved.state


def _commit(place: str, state: State, stepper: Saving) -> None:
    filesystem, path = resolve(place)
    data = {"state": state.to_json(), "world_size": stepper.world_size, "precision": stepper.precision, "files": _sizes(filesystem, path)}
    with filesystem.open_output_stream(f"{path}/{_MARKER}.writing") as stream:
        stream.write(json.dumps(data).encode())
    filesystem.move(f"{path}/{_MARKER}.writing", f"{path}/{_MARKER}")


def _prune(uri: str) -> None:
    filesystem, root = resolve(uri)
    for name in _names(filesystem, root)[:-_KEPT]:
        filesystem.delete_dir(f"{root}/{name}")


def _names(filesystem: arrow_fs.FileSystem, root: str) -> list[str]:
    found = filesystem.get_file_info(arrow_fs.FileSelector(root, allow_not_found=True))
    return sorted(info.base_name for info in found if info.base_name.startswith("step-"))


def _sizes(filesystem: arrow_fs.FileSystem, path: str) -> dict[str, int]:
    found = filesystem.get_file_info(arrow_fs.FileSelector(path, recursive=True))
    files = (info for info in found if info.type == arrow_fs.FileType.File and not info.base_name.startswith(_MARKER))
    return {info.path.removeprefix(path).lstrip("/"): info.size for info in files}
