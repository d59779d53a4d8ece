"""Places that hold files, local paths and s3:// alike: resolving, listing, digesting, copying.

Promise: one path for both kinds of place; a place that cannot be used is one `ValueError` line. Price: digests read every byte
(xxh3, some GB/s). Source: pyarrow.fs.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import xxhash
from pyarrow import fs as arrow_fs

__all__ = [
    "MANIFEST",
    "PARTIAL_STATE",
    "absolute",
    "content_digest",
    "copy_tree",
    "digest_of",
    "downloaded",
    "inventory",
    "is_unavailable",
    "list_files",
    "one_line",
    "resolve",
]

MANIFEST = "manifest.json"
PARTIAL_STATE = ".sterna-partial.json"
_CHUNK = 1 << 22
_ABOUT_THE_OBJECT = ("NO_SUCH_KEY", "NO_SUCH_BUCKET", "RESOURCE_NOT_FOUND", "ACCESS_DENIED", "INVALID_OBJECT_STATE")


def resolve(uri: str) -> tuple[arrow_fs.FileSystem, str]:
    """The filesystem and the path of a local path or an s3:// URI (endpoint from AWS_ENDPOINT_URL, as boto3 reads it)."""
    if "://" not in uri:
        return arrow_fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    if not uri.startswith("s3://"):
        raise ValueError(f"{uri}: not a storage location that Sterna knows; use a local path or s3://bucket/folder")
    try:
        filesystem, path = arrow_fs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        raise ValueError(f"{uri}: not a storage location this machine can use ({one_line(error)}); use s3://bucket/folder") from None
    return filesystem, path.rstrip("/")


def absolute(uri: str) -> str:
    """`uri` for a worker elsewhere, whose working directory is another: a local path made absolute, s3:// as it is."""
    return uri if "://" in uri else resolve(uri)[1]


def digest_of(value: Any) -> str:
    """Hex digest of JSON-able data, independent of the order of keys."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def content_digest(uri: str) -> str:
    """Digest of a file, or of a folder's names and contents, for inputs that no stage made."""
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type == arrow_fs.FileType.File:
        return digest_of(_measure(filesystem, path))
    return digest_of(inventory(uri))


def copy_tree(source: str, destination: str) -> None:
    """Copy a folder between any two places; a manifest, if there is one, goes last."""
    src_fs, src = resolve(source)
    dst_fs, dst = resolve(destination)
    names = sorted(list_files(src_fs, src), key=lambda n: (n == MANIFEST, n))
    for name in names:
        dst_fs.create_dir(str(Path(f"{dst}/{name}").parent), recursive=True)
        arrow_fs.copy_files(f"{src}/{name}", f"{dst}/{name}", source_filesystem=src_fs, destination_filesystem=dst_fs, use_threads=False)


def downloaded(uri: str, digest: str, cache: Path | None = None) -> Path:
    """A local copy of the folder at `uri`, made once per `digest` in `cache` (default: below the system's temporary folder)."""
    place = (cache or Path(tempfile.gettempdir()) / "sterna-cache") / digest
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        copy_tree(uri, f"{scratch}/copy")
        try:
            Path(scratch, "copy").rename(place)
        except OSError:  # another process was first
            if not place.is_dir():
                raise
    return place


def list_files(filesystem: arrow_fs.FileSystem, path: str) -> list[str]:
    """Paths of all files below `path`, relative to it; none if there is no such folder."""
    selector = arrow_fs.FileSelector(path, recursive=True, allow_not_found=True)
    found = (info.path for info in filesystem.get_file_info(selector) if info.type == arrow_fs.FileType.File)
    return [os.path.relpath(name, path) for name in found]


def inventory(uri: str) -> dict[str, dict[str, Any]]:
    """What a folder holds but for the files that describe it: path -> {"bytes": size, "xxh3": hex digest}."""
    filesystem, path = resolve(uri)
    return {
        name: _measure(filesystem, f"{path}/{name}")
        for name in sorted(list_files(filesystem, path))
        if name not in (MANIFEST, PARTIAL_STATE)
    }


def _measure(filesystem: arrow_fs.FileSystem, path: str) -> dict[str, Any]:
    hasher, size = xxhash.xxh3_128(), 0
    with filesystem.open_input_stream(path, compression=None) as stream:  # as stored, also where the name says how it is packed
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)
            size += len(chunk)
    return {"bytes": size, "xxh3": hasher.hexdigest()}


def one_line(error: Exception) -> str:
    """What a storage library says, without the rest of it."""
    return " ".join(str(error).split())


def is_unavailable(error: BaseException) -> bool:
    """Whether a place does not answer, which says nothing of what it holds: S3 after all retries of its client, a share that fails.

    >>> is_unavailable(OSError("AWS Error SLOW_DOWN (HTTP status 503)")), is_unavailable(OSError("AWS Error ACCESS_DENIED"))
    (True, False)
    """
    if not isinstance(error, OSError):
        return False
    text = str(error)
    said_by_s3 = "AWS Error" in text and not any(name in text for name in _ABOUT_THE_OBJECT)
    return said_by_s3 or error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
