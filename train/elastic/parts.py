"""Fragments on storage: one file for each worker that wrote, in the safetensors format, read again by ranges.

Promise: any stretch of any parameter is put together from whichever files hold it, local or s3://, and nothing else is read.
Price: the files' headers are read by every worker. Source: the safetensors format (a length, a JSON header, the bytes); written here in
small pieces, since the library's own writer holds Python's lock, and with it the training loop, for as long as the disk takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyarrow import fs as arrow_fs
from torch import Tensor

from cluster.storage import list_files, resolve
from train.elastic.pieces import Fragment

__all__ = ["SUFFIX", "StoredParts", "write_part"]

SUFFIX = ".safetensors"
_CHUNK_BYTES = 8 << 20
_SCALAR = "number"


def write_part(filesystem: arrow_fs.FileSystem, path: str, fragments: Sequence[Fragment]) -> int:
    """Write one worker's fragments to the file `path`; its size in bytes."""
    header, offset = {}, 0
    for fragment in fragments:
        end = offset + 4 * len(fragment.values)
        place = _SCALAR if fragment.scalar else fragment.start
        header[f"{fragment.kind}/{place}/{fragment.name}"] = {
            "dtype": "F32",
            "shape": [len(fragment.values)],
            "data_offsets": [offset, end],
        }
        offset = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with filesystem.open_output_stream(path) as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        for fragment in fragments:
            data = memoryview(fragment.values.contiguous().numpy()).cast("B")
            for start in range(0, len(data), _CHUNK_BYTES):
                stream.write(data[start : start + _CHUNK_BYTES])
    return 8 + len(raw) + offset


@dataclass(frozen=True, slots=True)
class _Stretch:
    path: str
    start: int
    count: int
    offset: int
    """Of its first byte in the file."""
    scalar: bool


class StoredParts:
    """All the fragments in a folder's files, as `Parts`."""

    def __init__(self, uri: str) -> None:
        """Raises ValueError when a file is none of ours."""
        self._uri = uri
        self._filesystem, root = resolve(uri)
        self._files: dict[str, Any] = {}
        self._found: dict[str, dict[str, list[_Stretch]]] = {}
        for name in sorted(list_files(self._filesystem, root)):
            if name.endswith(SUFFIX):
                self._index(f"{root}/{name}")

    def kinds(self, name: str) -> list[str]:
        """See Parts."""
        return list(self._found.get(name, ()))

    def is_scalar(self, name: str, kind: str) -> bool:
        """See Parts."""
        return any(stretch.scalar for stretch in self._found.get(name, {}).get(kind, ()))

    def read(self, name: str, kind: str, start: int, count: int) -> Tensor:
        """See Parts."""
        values, filled = np.empty(count, np.float32), start
        for stretch in sorted(self._found.get(name, {}).get(kind, ()), key=lambda s: s.start):
            first, last = max(filled, stretch.start), min(start + count, stretch.start + stretch.count)
            if stretch.start <= filled < last:
                values[first - start : last - start] = self._values(stretch, first - stretch.start, last - first)
                filled = last
        if filled < start + count:
            raise ValueError(f"{self._uri}: has no {kind} of {name} from element {filled} on; it is a checkpoint of another model")
        return torch.from_numpy(values)

    def _values(self, stretch: _Stretch, first: int, count: int) -> np.ndarray:
        file = self._open(stretch.path)
        file.seek(stretch.offset + 4 * first)
        return np.frombuffer(file.read(4 * count), np.float32)

    def _index(self, path: str) -> None:
        file = self._open(path)
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= file.size():
            raise ValueError(f"{path}: is no part of a checkpoint")
        for key, entry in json.loads(file.read(size)).items():
            kind, place, name = key.split("/", 2)
            scalar = place == _SCALAR
            stretch = _Stretch(path, 0 if scalar else int(place), entry["shape"][0], 8 + size + entry["data_offsets"][0], scalar)
            self._found.setdefault(name, {}).setdefault(kind, []).append(stretch)

    def _open(self, path: str) -> Any:
        if path not in self._files:
            self._files[path] = self._filesystem.open_input_file(path)
        return self._files[path]
