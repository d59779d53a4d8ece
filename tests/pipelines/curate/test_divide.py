"""Large files in parts: the records, ordinals and ids of the whole, wherever it is cut."""

from __future__ import annotations

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.curate import divide
from pipelines.curate.divide import byte_ranges, divided, num_records, row_groups, row_ranges
from pipelines.curate.document import DOCUMENT
from pipelines.curate.reading import read_files
from pipelines.curate.sources import chunked, find_files


def rows_of(files, num_partitions=0):
    tables = [table for chunk in chunked(files, num_partitions) for table in read_files(chunk)]
    return pa.concat_tables([DOCUMENT.empty_table(), *tables]).to_pylist()


KINDS = [
    b'{"text": "one"}',
    b'{"text": "one"}\r',
    b"",
    b"  ",
    b"{broken",
    b"[]",
    '{"text": "ünï"}'.encode(),
    b'{"text": "%s"}' % (b"x" * 99),
]
LINES = st.lists(st.sampled_from(KINDS), min_size=1, max_size=30)


@given(LINES, st.booleans(), st.integers(1, 80))
def test_lines_in_ranges_of_bytes_are_those_of_the_file(tmp_path_factory, lines, ends, part_bytes):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" * ends)
    if not path.stat().st_size:
        return
    (file,) = find_files([str(path)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(divide, "_PART_BYTES", part_bytes)
        ranges = byte_ranges(file)
    assert sum(part.num_bytes for part in ranges) == file.num_bytes
    parts = list(divide._numbered(ranges, [num_records(part) for part in ranges]))
    assert rows_of(parts) == rows_of([file])


def test_a_line_longer_than_its_range_belongs_to_the_one_it_begins_in(tmp_path, monkeypatch):
    monkeypatch.setattr(divide, "_PART_BYTES", 10)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 100}) + "\n" + json.dumps({"text": "y"}))
    ranges = byte_ranges(*find_files([str(tmp_path)]))
    assert [num_records(part) for part in ranges] == [1, *[0] * 10, 1, 0][: len(ranges)]


@given(st.lists(st.integers(0, 7), min_size=1, max_size=12), st.integers(1, 3000))
def test_rows_in_runs_of_row_groups_are_those_of_the_file(tmp_path_factory, sizes, part_bytes):
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    schema = pa.schema({"text": pa.string(), "id": pa.int64()})
    with pq.ParquetWriter(path, schema) as writer:
        for number, size in enumerate(sizes):
            texts = [None if row == 3 else f"text {number} {row}" * (number + 1) for row in range(size)]
            writer.write_table(pa.table({"text": texts, "id": range(size)}, schema))
    (file,) = find_files([str(path)])
    groups = row_groups(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(divide, "_PART_BYTES", part_bytes)
        parts = row_ranges(file, groups)
    assert rows_of(parts or [file]) == rows_of([file])
    assert abs(sum(part.num_bytes for part in parts) - file.num_bytes) <= len(parts) or not sum(size for _, size in groups)


def test_only_what_is_large_and_can_be_entered_is_cut(tmp_path, monkeypatch, ray_session):
    monkeypatch.setattr(divide, "_PART_BYTES", 1000)
    monkeypatch.setattr(divide, "_WHOLE_BYTES", 2000)
    lines = [json.dumps({"text": f"the text of line {n} {os.urandom(20).hex()}"}) for n in range(100)]
    data = "\n".join(lines).encode()
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data))
    pq.write_table(pa.table({"text": lines}), tmp_path / "c.parquet", row_group_size=10)
    pq.write_table(pa.table({"other": lines}), tmp_path / "d.parquet", row_group_size=10)
    (tmp_path / "e.parquet").write_bytes(b"PAR1" * 1000)
    (tmp_path / "f.txt").write_bytes(data)
    (tmp_path / "g.jsonl").write_bytes(data[:1500])
    files = find_files([str(tmp_path)])
    parts = divided(files)
    assert [part.name for part in parts if part.end is None] == ["b.jsonl.gz", "e.parquet", "f.txt", "g.jsonl"]
    assert {part.name for part in parts if part.end is not None} == {"a.jsonl", "c.parquet", "d.parquet"}
    whole = rows_of(files)
    assert {row["reason"] for row in whole} == {None, "unreadable.json", "unreadable.no_text", "unreadable.parquet"}
    for num_partitions in (0, 1, 4):
        assert rows_of(parts, num_partitions) == whole
    assert len(chunked(parts, 40)) > 2 * len(chunked(files, 40))


def test_a_file_that_has_gone_is_left_to_its_reader(tmp_path, monkeypatch, ray_session):
    monkeypatch.setattr(divide, "_PART_BYTES", 1000)
    monkeypatch.setattr(divide, "_WHOLE_BYTES", 2000)
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' * 200)
    files = find_files([str(tmp_path)])
    (tmp_path / "a.jsonl").unlink()
    assert divided(files) == files
    assert [row["reason"] for row in rows_of(divided(files))] == ["unreadable.missing"]
