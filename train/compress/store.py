"""What a compression has worked out so far, in files by digest: an interrupted run goes on, another one on the same prompts starts ahead.

Promise: a file is whole or absent, and its name is the digest of all that its contents depend on. Price: about 6 KB per completed
token for the original's 512 likeliest tokens; written once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.storage import digest_of
from train.compress.divergence import Reference, Trace

__all__ = ["Store"]

_PER_TOKEN = ("likeliest", "losses", "margins", "kl")


class Store:
    """A folder of results by key. One process writes it at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{folder}: cannot be written ({error.strerror}); choose another folder with --work") from None

    def reference(self, key: Any, make: Callable[[], Reference]) -> Reference:
        """The reference that `key` (JSON) says all of: read, or made and kept."""
        with np.load(self.file("reference", key, "npz", lambda scratch: _save_reference(scratch, make()))) as arrays:
            return _reference(arrays)

    def file(self, name: str, key: Any, kind: str, save: Callable[[Path], object]) -> Path:
        """The file `name` of `key`, which ends in `kind`: there already, or written by `save`."""
        path = self._path(name, key, kind)
        if not path.exists():
            _write(path, save)
        return path

    def read(self, name: str, key: Any) -> dict[str, Any]:
        """The table `name` of `key`; empty when there is none."""
        path = self._path(name, key, "json")
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def write(self, name: str, key: Any, table: Mapping[str, Any]) -> None:
        """Keep a table of JSON values in the place of an earlier one."""
        text = json.dumps(table)
        _write(self._path(name, key, "json"), lambda scratch: scratch.write_text(text))

    def _path(self, name: str, key: Any, kind: str) -> Path:
        return self.folder / f"{name}-{digest_of(key)[:20]}.{kind}"


def _write(path: Path, save: Callable[[Path], object]) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{path.suffix}")  # numpy wants its own ending
    save(scratch)
    scratch.replace(path)


def _save_reference(path: Path, reference: Reference) -> None:
    arrays = {name: np.concatenate([getattr(trace, name) for trace in reference.traces]) for name in _PER_TOKEN}
    for name in ("prompts", "completions"):
        rows = getattr(reference, name)
        arrays[name] = np.concatenate([np.asarray(row, np.int64) for row in rows])
        arrays[f"{name}_lengths"] = np.array([len(row) for row in rows])
    np.savez(path, **arrays, top_ids=np.concatenate(reference.top_ids), top_logprobs=np.concatenate(reference.top_logprobs))


def _reference(arrays: Mapping[str, NDArray[Any]]) -> Reference:
    def split(name: str, lengths: str) -> list[NDArray[Any]]:
        return np.split(arrays[name], np.cumsum(arrays[lengths])[:-1])

    columns = [split(name, "completions_lengths") for name in _PER_TOKEN]
    prompts, completions = (tuple(tuple(row.tolist()) for row in split(name, f"{name}_lengths")) for name in ("prompts", "completions"))
    return Reference(
        prompts=prompts,
        completions=completions,
        traces=tuple(Trace(*parts) for parts in zip(*columns, strict=True)),
        top_ids=tuple(split("top_ids", "completions_lengths")),
        top_logprobs=tuple(split("top_logprobs", "completions_lengths")),
    )
