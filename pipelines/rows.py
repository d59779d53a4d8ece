"""Rows of parquet and jsonl files, numbered by position: where a row came from is the row's name.

Promise: every readable row of the input gets one number, in the order of file names and positions, repeated contents
included; what cannot be read is listed with its reason and stops nothing. The rows are staged in pieces of one schema, so that
workers can take any range of them and a rerun sees what the first run saw. Price: one copy of the input while the stage runs.
"""

from __future__ import annotations

import fnmatch
import glob
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pyarrow import fs as arrow_fs

from cluster.storage import digest_of, resolve

__all__ = ["PIECE", "Staged", "Unreadable", "conform", "input_digest", "input_files", "open_staged", "stage", "write_table"]

PIECE = 1024
"""Rows per staged file."""
_ENDINGS = (".parquet", ".jsonl", ".ndjson")
_PACKED = (".gz", ".zst", ".bz2")
_LAST = "schema.parquet"
_MIXED = b"sterna.mixed"
_DEEPEST_LINE = 100
_DEEPEST_COLUMN = 24  # a list is up to three levels of a parquet schema, of which readers take some 100


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A piece of the input that was set aside."""

    source: str
    position: int
    """Line of a jsonl file (from 1), row of a parquet file (from 0)."""
    reason: str


@dataclass(frozen=True, slots=True)
class Staged:
    """The numbered rows of an input."""

    uri: str
    num_rows: int
    schema: pa.Schema
    """The input's columns."""
    unreadable: tuple[Unreadable, ...]
    mixed: frozenset[str] = frozenset()
    """The columns of several kinds, which hold texts as they were and everything else as JSON."""

    def rows(self, first: int, last: int) -> pa.Table:
        """Rows first..last-1 with the input's columns."""
        filesystem, path = resolve(self.uri)
        parts = []
        for piece in range(first // PIECE, -(-last // PIECE)):
            table = pq.read_table(_piece(path, piece), filesystem=filesystem)
            start = max(first - piece * PIECE, 0)
            parts.append(conform(table.slice(start, last - piece * PIECE - start), self.schema))
        return pa.concat_tables(parts)


def input_files(uri: str) -> list[str]:
    """The parquet and jsonl files of a file, a folder (and those in it) or a glob, by name, as `uri` addresses them.

    Raises ValueError when there are none.
    """
    filesystem, path = resolve(uri)
    if any(sign in path for sign in "*?["):
        found = _matching(filesystem, path)
    elif filesystem.get_file_info(path).type == arrow_fs.FileType.File:
        found = [path]
    else:
        found = [name for name in _below(filesystem, path) if _kind(name)]
        if f"{path}/manifest.json" in _below(filesystem, path):  # another stage's folder: what it set aside is not its rows
            found = [name for name in found if not name.startswith(f"{path}/dropped/")]
    if not found:
        raise ValueError(f"{uri}: no such file, or no parquet or jsonl files there; give a file, a folder or a glob")
    if unknown := [name for name in found if not _kind(name)]:
        raise ValueError(f"{unknown[0]}: not a format that can be read; convert it to parquet or jsonl (.gz, .zst)")
    return sorted(found)


def input_digest(uri: str) -> str:
    """Identity of the input: names and contents of its files."""
    filesystem, _ = resolve(uri)
    return digest_of([[name, _file_digest(filesystem, name)] for name in input_files(uri)])


def stage(uri: str, destination: str) -> Staged:
    """Number the rows of `uri` and stage them under `destination`; what an earlier call finished is taken as it is.

    Raises ValueError when no row can be read.
    """
    source, _ = resolve(uri)
    filesystem, path = resolve(destination)
    if filesystem.get_file_info(f"{path}/{_LAST}").type == arrow_fs.FileType.File:
        return open_staged(destination)
    filesystem.create_dir(path, recursive=True)
    unreadable: list[Unreadable] = []
    columns, num_rows = _Columns(), 0
    for piece, records in enumerate(_pieces(_tables(source, input_files(uri), unreadable))):
        columns.add(records.schema)
        write_table(records, f"{destination}/{piece:06d}.parquet")
        num_rows += records.num_rows
    if not num_rows:
        why = f": {unreadable[0].source}, line {unreadable[0].position}: {unreadable[0].reason}" if unreadable else ""
        raise ValueError(f"{uri}: not one row could be read{why}")
    about = {"num_rows": num_rows, "unreadable": [[u.source, u.position, u.reason] for u in unreadable]}
    schema = columns.schema().with_metadata({"staged": json.dumps(about)})
    write_table(schema.empty_table(), f"{destination}/{_LAST}")  # last: a staging without it is done again
    return open_staged(destination)


def open_staged(uri: str) -> Staged:
    """The rows that `stage` left at `uri`."""
    filesystem, path = resolve(uri)
    schema = pq.read_schema(f"{path}/{_LAST}", filesystem=filesystem)
    about = json.loads((schema.metadata or {})[b"staged"])
    plain = pa.schema([column.remove_metadata() for column in schema])
    unreadable = tuple(Unreadable(*each) for each in about["unreadable"])
    return Staged(uri, about["num_rows"], plain, unreadable, frozenset(column.name for column in schema if _is_mixed(column)))


def write_table(table: pa.Table, uri: str) -> None:
    """Write a parquet file that is whole or absent, at a local path or s3:// URI whose folder exists."""
    filesystem, path = resolve(uri)
    if isinstance(filesystem, arrow_fs.LocalFileSystem):
        pq.write_table(table, f"{path}.writing", filesystem=filesystem)
        filesystem.move(f"{path}.writing", path)
    else:
        pq.write_table(table, path, filesystem=filesystem)  # an object appears when its upload is complete


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns and types of `schema`: missing ones null, others in text columns as JSON.

    >>> conform(pa.table({"a": [1, 2]}), pa.schema([("a", pa.string()), ("b", pa.int64())])).to_pylist()
    [{'a': '1', 'b': None}, {'a': '2', 'b': None}]
    """
    columns = []
    for wanted in schema:
        if wanted.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, wanted.type))
        elif table.schema.field(wanted.name).type == wanted.type:
            columns.append(table[wanted.name])
        else:
            values = table[wanted.name].to_pylist()
            columns.append(pa.array(_as_text(values) if wanted.type == pa.string() else values, wanted.type))
    return pa.table(columns, schema=schema)


class _Columns:
    """The columns of all pieces together: a column of several kinds becomes text."""

    def __init__(self) -> None:
        self._columns: dict[str, pa.Field] = {}

    def add(self, schema: pa.Schema) -> None:
        for column in schema:
            self._columns[column.name] = _common(self._columns.get(column.name, column), column)

    def schema(self) -> pa.Schema:
        return pa.schema(self._columns.values())


def _common(one: pa.Field, other: pa.Field) -> pa.Field:
    if _is_mixed(one) or _is_mixed(other):
        return _mixed(one.name)
    try:
        both = [pa.schema([("column", column.type)]) for column in (one, other)]
        return pa.field(one.name, pa.unify_schemas(both, promote_options="permissive").field(0).type)
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return _mixed(one.name)


def _mixed(name: str) -> pa.Field:
    return pa.field(name, pa.string(), metadata={_MIXED: b"json"})


def _is_mixed(column: pa.Field) -> bool:
    return _MIXED in (column.metadata or {})


def _as_text(values: Sequence[Any]) -> list[str | None]:
    return [value if value is None or isinstance(value, str) else json.dumps(value, default=str) for value in values]


def _pieces(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of PIECE rows each, the last one shorter."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= PIECE:
            joined = _joined(waiting)
            yield joined.slice(0, PIECE)
            waiting = [joined.slice(PIECE)]
    if sum(map(len, waiting)):
        yield _joined(waiting)


def _joined(tables: list[pa.Table]) -> pa.Table:
    columns = _Columns()
    for table in tables:
        columns.add(table.schema)
    return pa.concat_tables([conform(table, columns.schema()) for table in tables])


def _tables(filesystem: arrow_fs.FileSystem, files: list[str], unreadable: list[Unreadable]) -> Iterator[pa.Table]:
    for name in files:
        yield from (_parquet if _kind(name) == ".parquet" else _jsonl)(filesystem, name, unreadable)


def _parquet(filesystem: arrow_fs.FileSystem, name: str, unreadable: list[Unreadable]) -> Iterator[pa.Table]:
    read = 0
    try:
        with pq.ParquetFile(name, filesystem=filesystem) as file:
            for batch in file.iter_batches(PIECE):
                yield pa.Table.from_batches([batch])
                read += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        unreadable.append(Unreadable(name, read, f"not readable from here on: {_line(error)}"))


def _jsonl(filesystem: arrow_fs.FileSystem, name: str, unreadable: list[Unreadable]) -> Iterator[pa.Table]:
    records: list[dict[str, Any]] = []
    position = 0
    try:
        with io.BufferedReader(filesystem.open_input_stream(name)) as lines:  # decompressed by the name's ending
            for position, line in enumerate(lines, start=1):
                if line.strip():
                    _take(line, records, Unreadable(name, position, ""), unreadable)
                if len(records) == PIECE:
                    yield _table(records)
                    records = []
    except OSError as error:
        unreadable.append(Unreadable(name, position + 1, f"not readable from here on: {_line(error)}"))
    if records:
        yield _table(records)


def _take(line: bytes, records: list[dict[str, Any]], here: Unreadable, unreadable: list[Unreadable]) -> None:
    try:
        record = json.loads(line)
        if line.count(b"[") + line.count(b"{") > _DEEPEST_LINE and _deeper(record, _DEEPEST_LINE):
            raise RecursionError
        if b"\\ud" in line.lower():  # JSON can spell half of a surrogate pair, which is no text
            json.dumps(record, ensure_ascii=False).encode()
    except RecursionError:
        unreadable.append(Unreadable(here.source, here.position, f"nested deeper than {_DEEPEST_LINE} levels"))
        return
    except UnicodeEncodeError:
        unreadable.append(Unreadable(here.source, here.position, "holds half of a surrogate pair, which is no character"))
        return
    except ValueError as error:
        unreadable.append(Unreadable(here.source, here.position, f"not JSON: {_line(error)}"))
        return
    if isinstance(record, dict) and record:
        records.append(record)
    else:
        what = f"not {type(record).__name__}" if record else "not an empty one"
        unreadable.append(Unreadable(here.source, here.position, f"a JSON object is needed, {what}"))


def _table(records: list[dict[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for record in records for name in record)
    columns = [_column(name, [record.get(name) for record in records]) for name in names]
    return pa.table([values for _, values in columns], schema=pa.schema([column for column, _ in columns]))


def _column(name: str, values: list[Any]) -> tuple[pa.Field, pa.Array]:
    try:
        array = pa.array(values)
        if _storable(array.type, _DEEPEST_COLUMN):
            return pa.field(name, array.type), array
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        pass  # of several kinds, or of none that Arrow has
    return _mixed(name), pa.array(_as_text(values), pa.string())


def _deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper(each, levels - 1) for each in inner)


def _storable(kind: pa.DataType, levels: int) -> bool:
    """Whether parquet holds values of this kind: no struct without fields, and not too many levels."""
    if pa.types.is_struct(kind) and not kind.num_fields:
        return False
    return levels > 0 and all(_storable(kind.field(n).type, levels - 1) for n in range(kind.num_fields))


def _kind(name: str) -> str:
    """The ending that says how to read a file, compression aside; empty for other files and hidden ones."""
    base = name.rsplit("/", 1)[-1]
    if base.startswith((".", "_")):
        return ""
    for packed in _PACKED:
        base = base.removesuffix(packed)
    return next((ending for ending in _ENDINGS if base.endswith(ending)), "")


def _below(filesystem: arrow_fs.FileSystem, path: str) -> list[str]:
    selector = arrow_fs.FileSelector(path, recursive=True, allow_not_found=True)
    return [info.path for info in filesystem.get_file_info(selector) if info.type == arrow_fs.FileType.File]


def _matching(filesystem: arrow_fs.FileSystem, pattern: str) -> list[str]:
    if isinstance(filesystem, arrow_fs.LocalFileSystem):
        return [name for name in glob.glob(pattern, recursive=True) if filesystem.get_file_info(name).type == arrow_fs.FileType.File]
    fixed = pattern[: min(pattern.find(sign) for sign in "*?[" if sign in pattern)].rsplit("/", 1)[0]
    deep = "**" in pattern
    names = (name for name in _below(filesystem, fixed) if deep or name.count("/") == pattern.count("/"))
    return [name for name in names if fnmatch.fnmatchcase(name, pattern.replace("**/", "*"))]


def _piece(path: str, piece: int) -> str:
    return f"{path}/{piece:06d}.parquet"


def _file_digest(filesystem: arrow_fs.FileSystem, name: str) -> str:
    hasher = xxhash.xxh3_128()
    with filesystem.open_input_stream(name, compression=None) as stream:
        while chunk := stream.read(1 << 22):
            hasher.update(chunk)
    return hasher.hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
