"""Where documents come from: files found on the driver, by folder, name or glob, local and s3:// alike.

Promise: the files are the same, in the same order and cut into the same chunks wherever this runs; which are read under
`max_bytes` follows from their names alone. Price: one listing per input. After: pyarrow.fs.
"""

from __future__ import annotations

import os
import re
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import xxhash
from pyarrow import fs as arrow_fs

from cluster.storage import resolve
from pipelines.curate.formats import format_of, known_formats

__all__ = ["SourceFile", "chunked", "find_files", "installed_text", "outside", "real_folder", "sampled"]

_INSTALLED = {"py", "md", "rst", "txt"}
_SKIPPED_FOLDERS = re.compile(r"(^|/)(__pycache__|\.[^/]+)/")
_CHUNK_BYTES = 8 << 20
_CHUNK = pa.schema({"uri": pa.binary(), "format": pa.string(), "begin": pa.int64(), "end": pa.int64(), "first": pa.int64()})


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read, or a part of one."""

    uri: str
    format: str
    num_bytes: int
    modified_ns: int
    name: str
    """Its path below the input it was found in: the same on machines that keep the same files elsewhere."""
    begin: int = 0
    """Where the part begins: a byte of a jsonl file, a row group of a parquet file."""
    end: int | None = None
    """Before where it ends; None: with the file."""
    first: int = 0
    """The ordinal of its first record."""


def installed_text() -> tuple[str, ...]:
    """The folders of text that every machine has: this Python's standard library and its installed packages."""
    paths = sysconfig.get_paths()
    return tuple(dict.fromkeys(paths[name] for name in ("stdlib", "purelib", "platlib")))


def find_files(inputs: Sequence[str]) -> list[SourceFile]:
    """Every readable file of the inputs (folders, files, globs; none: `installed_text`), by URI, each once.

    Raises ValueError for an input that does not exist, holds no file of a known format, or is a file of another.
    """
    found: dict[str, SourceFile] = {}
    for item in inputs or installed_text():
        files = [f for f in _find_in(item) if inputs or f.format in _INSTALLED]
        if not files:
            raise ValueError(f"{item}: holds no text to read; formats: {known_formats()}")
        for file in files:
            found.setdefault(file.uri, file)
    files = sorted(found.values(), key=lambda f: f.uri)
    if not any(f.num_bytes for f in files):
        raise ValueError(f"{', '.join(inputs)}: every file is empty; give an input that holds text")
    return files


def outside(files: Sequence[SourceFile], folder: str) -> list[SourceFile]:
    """The files that do not lie in the folder: what a run writes below its own input is not read by the next, nor what one that was
    interrupted left beside it (cluster/artifact.py)."""
    place, real = real_folder(folder), cache(real_folder)
    written = tuple(f"{place}{suffix}/" for suffix in ("", ".partial", ".replaced"))
    found = [file for file in files if not f"{real(file.uri.rpartition('/')[0] or '/')}/".startswith(written)]
    if not any(f.num_bytes for f in found):
        raise ValueError(f"output: {folder} holds all of the input; give another --output")
    return found


def real_folder(uri: str) -> str:
    """One name for a folder, whether it is reached straight, by way of .. or through a link."""
    return uri.rstrip("/") if "://" in uri else os.path.realpath(resolve(uri)[1])


def sampled(files: Sequence[SourceFile], max_bytes: int | None, seed: int) -> list[SourceFile]:
    """At most `max_bytes` of the files: in the order of the hashes of their names each that fits, until 99 % is full.

    Going on to the last byte would fill the rest with the smallest files.
    """
    if max_bytes is None:
        return list(files)
    chosen, left = [], max_bytes
    for file in sorted(files, key=lambda f: (xxhash.xxh3_64_intdigest(f.name.encode(errors="surrogateescape"), seed), f.uri)):
        if left < max_bytes // 100:
            break
        if file.num_bytes <= left:
            chosen.append(file)
            left -= file.num_bytes
    if not any(f.num_bytes for f in chosen):
        smallest = min(f.num_bytes for f in files if f.num_bytes)
        raise ValueError(f"max_bytes: {max_bytes} is less than any file holds (the smallest: {smallest}); raise it")
    return sorted(chosen, key=lambda f: f.uri)


def chunked(files: Sequence[SourceFile], num_partitions: int) -> list[pa.Table]:
    """The files in order, cut into chunks of about equal bytes: `num_partitions`, or as many as have 8 MB each."""
    total = sum(f.num_bytes for f in files)
    count = min(num_partitions or -(-total // _CHUNK_BYTES), len(files))
    chunks: list[list[SourceFile]] = [[] for _ in range(max(1, count))]
    before = 0
    for file in files:
        chunks[min(before * len(chunks) // total, len(chunks) - 1)].append(file)
        before += file.num_bytes
    return [_table(chunk) for chunk in chunks if chunk]


def _table(files: Sequence[SourceFile]) -> pa.Table:
    """What `read_files` needs to know; URIs as bytes: a file's name need not be UTF-8."""
    told = ("format", "begin", "end", "first")
    columns = {name: pa.array([getattr(file, name) for file in files], _CHUNK.field(name).type) for name in told}
    return pa.table({"uri": [os.fsencode(file.uri) for file in files], **columns}, _CHUNK)


def _find_in(item: str) -> list[SourceFile]:
    root, pattern = _split_glob(item)
    if root.endswith("://"):
        raise ValueError(f"{root}: names no bucket; give s3://bucket/folder")
    filesystem, path = resolve(root)
    scheme = root.split("://")[0] + "://" if "://" in root else ""
    wanted = _matcher(pattern)
    try:
        info = filesystem.get_file_info(path)
        if info.type == arrow_fs.FileType.NotFound:
            raise ValueError(f"{root}: no such file or folder; give an input that exists")
        if info.type == arrow_fs.FileType.Unknown:
            raise ValueError(f"{root}: neither a file nor a folder; give an input that can be read twice")
        if info.type == arrow_fs.FileType.File:
            return [_named_file(scheme, path, info)]
        listed = _list_remote(filesystem, path) if scheme else _list_local(path, skip_hidden=not pattern)
        return [
            SourceFile(f"{scheme}{path}/{name}", format_, size, modified_ns, name)
            for name, size, modified_ns in listed
            if (format_ := format_of(name)) is not None and wanted(name)
        ]
    except UnicodeEncodeError:
        told = root.encode(errors="backslashreplace").decode()
        raise ValueError(f"{told}: not a name in UTF-8; give the folder that it lies in") from None
    except OSError as error:
        raise ValueError(f"{root}: cannot be listed ({' '.join(str(error).split())}); check the path and the permissions") from None


def _list_remote(filesystem: arrow_fs.FileSystem, path: str) -> Iterator[tuple[str, int, int]]:
    """Name below `path`, size and time of change (ns) of every file."""
    for info in filesystem.get_file_info(arrow_fs.FileSelector(path, recursive=True)):
        if info.type == arrow_fs.FileType.File:
            yield info.path.removeprefix(path).lstrip("/"), info.size, info.mtime_ns or 0


def _list_local(path: str, skip_hidden: bool) -> Iterator[tuple[str, int, int]]:
    """The same; ten times faster than pyarrow, since only files of a known format are looked at."""
    for folder, folders, names in os.walk(path, onerror=_raise):
        folders[:] = sorted(f for f in folders if not skip_hidden or not (f.startswith(".") or f == "__pycache__"))
        below = folder[len(path) :].lstrip("/") + "/" if folder != path else ""
        for name in filter(format_of, names):
            status = os.stat(f"{folder}/{name}", follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode) and os.path.exists(f"{folder}/{name}"):
                status = os.stat(f"{folder}/{name}")
            if stat.S_ISREG(status.st_mode):
                yield below + name, status.st_size, status.st_mtime_ns


def _raise(error: OSError) -> None:
    """What cannot be listed is not passed over in silence."""
    raise error


def _split_glob(item: str) -> tuple[str, str]:
    """The folder before the first wildcard, and the pattern below it ("" for everything)."""
    wild = re.search(r"[*?\[]", item)
    if not wild or ("://" not in item and os.path.exists(item)):  # a name may hold brackets, too
        return item if item.endswith("://") else item.rstrip("/") or "/", ""
    cut = item.rfind("/", 0, wild.start())
    return (item[:cut] or "/") if cut >= 0 else ".", item[cut + 1 :]


def _matcher(pattern: str) -> Any:
    if not pattern:
        return lambda name: not _SKIPPED_FOLDERS.search(name)
    parts = re.split(r"(\*\*/|\*|\?|\[!?+[^\]]+\])", pattern)
    wild = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    try:  # every second part is wild
        return re.compile("".join((wild.get(p) or _set(p)) if n % 2 else re.escape(p) for n, p in enumerate(parts))).fullmatch
    except re.error as error:
        raise ValueError(f"{pattern}: not a pattern ({error}); write sets as [abc], [a-z] or [!a-z]") from None


def _set(part: str) -> str:
    """A glob's [set] as an expression; like every wildcard, it never matches a slash.

    >>> _set("[!_]")
    '(?!/)[^_]'
    """
    negated = part[1] == "!"
    inside = re.sub(r"([\\\[&~|^])", r"\\\1", part[1 + negated : -1])
    return f"(?!/)[{'^' * negated}{inside}]"


def _named_file(scheme: str, path: str, info: arrow_fs.FileInfo) -> SourceFile:
    format_ = format_of(info.base_name)
    if format_ is None:
        raise ValueError(f"{scheme}{path}: not a format that curate reads; give one of {known_formats()}")
    return SourceFile(scheme + path, format_, info.size, info.mtime_ns or 0, info.base_name)
