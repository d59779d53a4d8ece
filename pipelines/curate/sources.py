"""Where documents come from: files found on the driver, read by tasks, each record a row, the unreadable ones too.

Promise: the files are the same, in the same order and cut into the same chunks wherever this runs; a record that cannot be
read becomes a row with an `unreadable.…` reason instead of an exception. Price: one listing per input; a task holds one
whole text file, or a few MB of a jsonl or parquet file, at a time. After: pyarrow.fs for local and s3:// alike.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pyarrow import fs as arrow_fs

from cluster.storage import resolve
from pipelines.curate.document import DOCUMENT, UNREADABLE, document_id, excerpt

__all__ = ["SourceFile", "chunked", "find_files", "installed_text", "read_files", "sampled"]

FORMATS = {
    ".py": "py", ".md": "md", ".rst": "rst", ".txt": "txt",
    ".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".jsonl.zst": "jsonl", ".parquet": "parquet",
}  # fmt: skip
_COMPRESSION = {"gz": "gzip", "zst": "zstd"}
_CODE = {"py"}
_INSTALLED = {"py", "md", "rst", "txt"}
_SKIPPED_FOLDERS = re.compile(r"(^|/)(__pycache__|\.[^/]+)/")
_CHUNK_BYTES = 8 << 20
_PART_CHARS = 250_000  # a longer .txt is several documents, cut at blank lines, or else at lines
_YIELD_CHARS = 8 << 20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read."""

    uri: str
    format: str
    num_bytes: int
    modified_ns: int
    name: str
    """Its path below the input it was found in: the same on machines that keep the same files elsewhere."""


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
            raise ValueError(f"{item}: holds no text to read; formats: {' '.join(FORMATS)}")
        for file in files:
            found.setdefault(file.uri, file)
    files = sorted(found.values(), key=lambda f: f.uri)
    if not any(f.num_bytes for f in files):
        raise ValueError(f"{', '.join(inputs)}: every file is empty; give an input that holds text")
    return files


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
    # as bytes: a file's name need not be UTF-8
    return [pa.table({"uri": [os.fsencode(f.uri) for f in c], "format": [f.format for f in c]}) for c in chunks if c]


def read_files(files: pa.Table, text_field: str) -> Iterator[pa.Table]:
    """The records of the files as tables of `DOCUMENT` rows, some MB of text each."""
    rows: list[dict[str, Any]] = []
    chars = 0
    for uri, format_ in zip(files["uri"].to_pylist(), files["format"].to_pylist(), strict=True):
        for row in _read_file(os.fsdecode(uri), format_, text_field):
            rows.append(row)
            chars += len(row["text"] or "")
            if chars > _YIELD_CHARS:
                yield pa.Table.from_pylist(rows, DOCUMENT)
                rows, chars = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, DOCUMENT)


def _find_in(item: str) -> list[SourceFile]:
    root, pattern = _split_glob(item)
    filesystem, path = resolve(root)
    scheme = root.split("://")[0] + "://" if "://" in root else ""
    wanted = _matcher(pattern)
    try:
        info = filesystem.get_file_info(path)
        if info.type == arrow_fs.FileType.NotFound:
            raise ValueError(f"{root}: no such file or folder; give an input that exists")
        if info.type == arrow_fs.FileType.File:
            return [_named_file(scheme, path, info)]
        listed = _list_remote(filesystem, path) if scheme else _list_local(path, skip_hidden=not pattern)
        return [
            SourceFile(f"{scheme}{path}/{name}", format_, size, modified_ns, name)
            for name, size, modified_ns in listed
            if (format_ := _format_of(name)) is not None and wanted(name)
        ]
    except OSError as error:
        raise ValueError(f"{root}: cannot be listed ({' '.join(str(error).split())}); check the path and the permissions") from None


def _list_remote(filesystem: arrow_fs.FileSystem, path: str) -> Iterator[tuple[str, int, int]]:
    """Name below `path`, size and time of change (ns) of every file."""
    for info in filesystem.get_file_info(arrow_fs.FileSelector(path, recursive=True)):
        if info.type == arrow_fs.FileType.File:
            yield info.path.removeprefix(path).lstrip("/"), info.size, info.mtime_ns or 0


def _list_local(path: str, skip_hidden: bool) -> Iterator[tuple[str, int, int]]:
    """The same; ten times faster than pyarrow, since only files of a known format are looked at."""
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(f for f in folders if not skip_hidden or not (f.startswith(".") or f == "__pycache__"))
        below = folder[len(path) :].lstrip("/") + "/" if folder != path else ""
        for name in filter(_format_of, names):
            status = os.stat(f"{folder}/{name}", follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode) and os.path.exists(f"{folder}/{name}"):
                status = os.stat(f"{folder}/{name}")
            if stat.S_ISREG(status.st_mode):
                yield below + name, status.st_size, status.st_mtime_ns


def _split_glob(item: str) -> tuple[str, str]:
    """The folder before the first wildcard, and the pattern below it ("" for everything)."""
    wild = re.search(r"[*?\[]", item)
    if not wild:
        return item.rstrip("/") or "/", ""
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
    format_ = _format_of(info.base_name)
    if format_ is None:
        raise ValueError(f"{scheme}{path}: not a format that curate reads; give one of {' '.join(FORMATS)}")
    return SourceFile(scheme + path, format_, info.size, info.mtime_ns or 0, info.base_name)


def _format_of(name: str) -> str | None:
    """By the suffix, the one before .gz or .zst included.

    >>> _format_of("a/b.JSONL.gz"), _format_of("setup.cfg")
    ('jsonl', None)
    """
    parts = name.rsplit("/", 1)[-1].lower().split(".")
    return FORMATS.get("." + ".".join(parts[-2:])) or FORMATS.get("." + parts[-1]) if len(parts) > 1 else None


@lru_cache(maxsize=16)
def _filesystem(root: str) -> arrow_fs.FileSystem:
    return resolve(root)[0]


def _open(uri: str) -> tuple[arrow_fs.FileSystem, str | bytes]:
    if "://" not in uri:
        return _filesystem("/"), os.fsencode(uri)
    scheme, path = uri.split("://", 1)
    return _filesystem(f"{scheme}://{path.split('/', 1)[0]}"), path


def _read_file(uri: str, format_: str, text_field: str) -> Iterator[dict[str, Any]]:
    """The records of one file; the last may say that the rest of the file cannot be read."""
    ordinal = 0
    reader = {"jsonl": _read_jsonl, "parquet": _read_parquet}.get(format_, _read_text)
    try:
        for text, problem in reader(uri, text_field):
            yield _row(uri, ordinal, format_, text, problem)
            ordinal += 1
    except FileNotFoundError:
        yield _row(uri, ordinal, format_, None, "missing: the file was there when the input was listed")
    except (OSError, EOFError, pa.ArrowException) as error:
        yield _row(uri, ordinal, format_, None, f"{'parquet' if format_ == 'parquet' else 'file'}: {error}")


def _row(uri: str, ordinal: int, format_: str, text: str | None, problem: str) -> dict[str, Any]:
    kind = "code" if format_ in _CODE else "prose"
    source = uri.encode(errors="backslashreplace").decode()
    row = {"text": None, "source": source, "ordinal": ordinal, "kind": kind, "format": format_, "num_chars": 0, "num_words": 0}
    if text is not None:
        try:
            content = text.encode()
            return row | {"id": document_id(uri, ordinal, content), "text": text, "num_chars": len(text)}
        except UnicodeEncodeError as error:
            problem = f"encoding: {error}"
    reason, _, detail = problem.partition(": ")
    return row | {"id": document_id(uri, ordinal, problem.encode()), "reason": UNREADABLE + reason, "excerpt": excerpt(detail)}


Record = tuple[str | None, str]
"""A record's text and "", or None and "reason: what is wrong with it"."""


def _read_text(uri: str, _: str) -> Iterator[Record]:
    filesystem, path = _open(uri)
    with filesystem.open_input_stream(path, compression=None) as stream:
        raw = stream.readall()
    if b"\0" in raw:
        yield None, "binary: holds a zero byte"
        return
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        yield None, f"encoding: {error}"
        return
    parts = [text] if len(text) <= _PART_CHARS or not uri.lower().endswith(".txt") else _parts(text)
    yield from ((part, "") for part in parts)


def _parts(text: str) -> Iterator[str]:
    """The text cut after blank lines into parts of up to `_PART_CHARS`; a longer paragraph is cut after lines, a longer line stays."""
    part = ""
    for paragraph in re.split(r"(?<=\n)(?=[ \t]*\r?\n)", text):
        for block in [paragraph] if len(paragraph) <= _PART_CHARS else paragraph.splitlines(keepends=True):
            if part and len(part) + len(block) > _PART_CHARS:
                yield part
                part = ""
            part += block
    yield part


def _read_jsonl(uri: str, text_field: str) -> Iterator[Record]:
    filesystem, path = _open(uri)
    with filesystem.open_input_stream(path, compression=_COMPRESSION.get(uri.lower().rsplit(".", 1)[-1])) as stream:
        for line in io.BufferedReader(stream, 1 << 20):
            if line.strip():
                yield _json_record(line, text_field)


def _json_record(line: bytes, text_field: str) -> Record:
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        return None, f"encoding: {error}"
    except (ValueError, RecursionError) as error:
        return None, f"json: {error}: {line[:100].decode(errors='replace')}"
    if not isinstance(value, dict) or not isinstance(value.get(text_field), str):
        return None, f"no_text: no text under {text_field!r}: {line[:100].decode(errors='replace')}"
    return value[text_field], ""


def _read_parquet(uri: str, text_field: str) -> Iterator[Record]:
    filesystem, path = _open(uri)
    with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as file:
        if text_field not in file.schema_arrow.names:
            yield None, f"no_text: no column {text_field!r}; columns: {', '.join(file.schema_arrow.names)}"
            return
        for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
            yield from (_parquet_record(value, text_field) for value in batch.column(0).to_pylist())


def _parquet_record(value: Any, text_field: str) -> Record:
    return (value, "") if isinstance(value, str) else (None, f"no_text: no text in column {text_field!r}")
