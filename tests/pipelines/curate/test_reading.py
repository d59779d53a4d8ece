"""Files of every format become rows; what cannot be read becomes a row with its reason."""

from __future__ import annotations

import gzip
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipelines.curate import reading, records
from pipelines.curate.document import DOCUMENT
from pipelines.curate.reading import read_files
from pipelines.curate.records import Fields, Record
from pipelines.curate.sources import chunked, find_files, sampled


def rows_of(*paths, **fields):
    files = find_files([str(p) for p in paths])
    table = pa.table({"uri": [f.uri for f in files], "format": [f.format for f in files]})
    rows = pa.concat_tables([DOCUMENT.empty_table(), *read_files(table, Fields(**fields))]).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return rows


def seen(rows):
    return [(row["source"].rsplit("/", 1)[1], row["ordinal"], row["text"], row["reason"]) for row in rows]


def test_text_files_of_every_format_with_their_kind(tmp_path):
    for name in ("a.py", "b.md", "c.rst", "d.TXT", "e.png", "f.pyc", "g.rs", "h.HPP"):
        (tmp_path / name).write_text(f"text of {name}")
    rows = rows_of(tmp_path)
    assert [(r["source"].rsplit("/", 1)[1], r["format"], r["kind"]) for r in rows] == [
        ("a.py", "py", "code"), ("b.md", "md", "prose"), ("c.rst", "rst", "prose"), ("d.TXT", "txt", "prose"),
        ("g.rs", "rs", "code"), ("h.HPP", "cpp", "code"),
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_jsonl_plain_and_compressed_sets_broken_lines_aside(tmp_path, suffix):
    lines = [
        b'{"text": "one"}',
        b"{broken",
        b"",
        b'{"body": "x"}',
        b"[1]",
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        '{"text": "é"}'.encode(),
    ]
    data = b"\n".join(lines)
    packed = {".jsonl": data, ".jsonl.gz": gzip.compress(data), ".jsonl.zst": zstandard.compress(data)}[suffix]
    (tmp_path / f"data{suffix}").write_bytes(packed)
    found = [(text, reason) for _, _, text, reason in seen(rows_of(tmp_path))]
    assert found == [
        ("one", None), (None, "unreadable.json"), (None, "unreadable.no_text"), (None, "unreadable.no_text"),
        (None, "unreadable.encoding"), (None, "unreadable.encoding"), ("é", None),
    ]  # fmt: skip


def test_what_was_read_before_a_truncated_archive_breaks_off_is_kept(tmp_path):
    data = b"\n".join(json.dumps({"text": f"document {i} {hash(i * 7919) % 10**9}"}).encode() for i in range(50_000))
    packed = gzip.compress(data)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-2000])
    (tmp_path / "wrong.jsonl.gz").write_bytes(packed[:-2000] + b"\xff" * 2000)
    assert rows_of(tmp_path / "wrong.jsonl.gz")[-1]["reason"] == "unreadable.file"
    rows = rows_of(tmp_path / "cut.jsonl.gz")
    assert rows[-1]["reason"] == "unreadable.file"
    assert len(rows) > 49_000
    assert {row["reason"] for row in rows[:-2]} == {None}


def test_parquet_with_nulls_another_column_and_a_broken_file(tmp_path):
    pq.write_table(pa.table({"body": ["one", None, "two"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really")
    assert seen(rows_of(tmp_path, text="body")) == [
        ("a.parquet", 0, "one", None), ("a.parquet", 1, None, "unreadable.no_text"), ("a.parquet", 2, "two", None),
        ("b.parquet", 0, None, "unreadable.no_text"), ("c.parquet", 0, None, "unreadable.parquet"),
    ]  # fmt: skip


def test_a_dump_is_no_document(tmp_path, monkeypatch):
    for module in (records, reading):
        monkeypatch.setattr(module, "MOST_CHARS", 50)
    monkeypatch.setattr(records, "_BLOCK_BYTES", 8)
    for length, name in ((50, "a"), (51, "b"), (500, "c")):
        (tmp_path / f"{name}.sql").write_text("x" * length)
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": "x" * length}))
    found = {(name, len(text or ""), reason) for name, _, text, reason in seen(rows_of(tmp_path))}
    whole = {(f"a.{suffix}", 50, None) for suffix in ("sql", "jsonl")}
    assert found == whole | {(f"{name}.{suffix}", 0, "unreadable.too_large") for name in "bc" for suffix in ("sql", "jsonl")}


def test_what_holds_no_text_is_not_held_at_once_either(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_YIELD_CHARS", 10_000)
    (tmp_path / "a.jsonl").write_text("{broken\n" * 1000)
    tables = list(read_files(pa.table({"uri": [str(tmp_path / "a.jsonl")], "format": ["jsonl"]})))
    assert sum(map(len, tables)) == len({i for table in tables for i in table["id"].to_pylist()}) == 1000
    assert max(map(len, tables)) <= 20


def test_the_id_of_what_cannot_be_read_does_not_depend_on_how_that_is_told(tmp_path, monkeypatch):
    table = pa.table({"uri": [str(tmp_path / "a.jsonl")], "format": ["jsonl"]})
    rows = []
    for told in ("at 0x7f01", "at 0x7f02 \udcff"):
        monkeypatch.setitem(reading._READERS, "jsonl", lambda *_, told=told: iter([Record(None, problem=f"json: {told}")]))
        rows += pa.concat_tables(read_files(table)).to_pylist()
    assert rows[0]["id"] == rows[1]["id"]
    assert [row["excerpt"] for row in rows] == ["at 0x7f01", r"at 0x7f02 \udcff"]


def test_undecodable_binary_and_vanished_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_bytes(b"zero\0byte")
    table = pa.table({"uri": [str(tmp_path / n) for n in ("a.txt", "b.txt", "gone.txt")], "format": ["txt"] * 3})
    rows = pa.concat_tables(read_files(table)).to_pylist()
    assert [row["reason"] for row in rows] == ["unreadable.encoding", "unreadable.binary", "unreadable.missing"]
    assert all(row["excerpt"] for row in rows)


def test_a_file_whose_name_is_not_utf8_is_read_like_any_other(tmp_path):
    folder = os.fsencode(tmp_path)
    for name in (b"caf\xe9.txt", b"caf\xe8.txt", b"data\xff.jsonl", b"table\xff.parquet", b"undecodable\xff.md"):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(b'{"text": "a"}')
    Path(os.fsdecode(folder + b"/undecodable\xff.md")).write_bytes(b"\xff")
    files = find_files([str(tmp_path)])
    chunks = chunked(sampled(files, 1000, 0), 1)
    rows = pa.concat_tables([t for chunk in chunks for t in read_files(chunk)]).to_pylist()
    assert len({row["id"] for row in rows}) == 5
    assert sorted(seen(rows)) == [
        (r"caf\udce8.txt", 0, '{"text": "a"}', None), (r"caf\udce9.txt", 0, '{"text": "a"}', None), (r"data\udcff.jsonl", 0, "a", None),
        (r"table\udcff.parquet", 0, None, "unreadable.parquet"), (r"undecodable\udcff.md", 0, None, "unreadable.encoding"),
    ]  # fmt: skip
    Path(os.fsdecode(folder + b"/caf\xe9.txt")).unlink()
    assert "unreadable.missing" in {row["reason"] for chunk in chunks for t in read_files(chunk) for row in t.to_pylist()}


def test_a_long_text_file_is_cut_at_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_PART_CHARS", 40)
    text = "\n\n".join(f"paragraph {i} of the book" for i in range(9)) + "\n\n" + "x" * 100 + "\n" + "a line\n" * 20
    (tmp_path / "book.txt").write_text(text)
    (tmp_path / "code.py").write_text(text)
    parts = [row["text"] for row in rows_of(tmp_path / "book.txt")]
    assert "".join(parts) == text
    assert len(parts) > 6
    assert all(len(part) <= 40 or part.strip() == "x" * 100 for part in parts)
    assert len(rows_of(tmp_path / "code.py")) == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_id_and_the_date_that_a_source_gives_are_kept(tmp_path, suffix):
    rows = [{"id": "a/1", "text": "one", "date": "1970-01-02"}, {"id": 17, "text": "two", "date": None}, {"id": None, "text": None}]
    if suffix == ".jsonl":
        (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + '\n{"text": "three", "id": "\\ud800"}')
    else:
        columns = {"id": ["a/1", "17", None], "text": ["one", "two", None], "date": ["1970-01-02", None, None]}
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = [(row["source_id"], row["text"], row["date"], row["reason"]) for row in rows_of(tmp_path)]
    expected = [("a/1", "one", 86400.0, None), ("17", "two", None, None), (None, None, None, "unreadable.no_text")]
    assert found == expected + ([("\\ud800", "three", None, None)] if suffix == ".jsonl" else [])


def test_a_source_without_ids_has_none_and_the_field_can_be_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text('{"text": "one", "url": "http://x"}')
    assert [row["source_id"] for row in rows_of(tmp_path)] == [None, None]
    assert [row["source_id"] for row in rows_of(tmp_path, id="url")] == [None, "http://x"]


def test_a_page_and_an_archive_are_read_like_any_other_file(tmp_path):
    sentences = " ".join(f"The tern of the year {year} flew over the sea to the far south." for year in range(1900, 1930))
    page = f"<html><body><nav>Home</nav><article><p>{sentences}</p></article></body></html>".encode()
    (tmp_path / "a.html").write_bytes(page)
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://x/\r\nContent-Length: {len(http)}\r\n\r\n".encode()
    (tmp_path / "b.warc.gz").write_bytes(gzip.compress(head + http + b"\r\n\r\n"))
    rows = rows_of(tmp_path)
    assert [(row["format"], row["kind"], row["source_id"], row["reason"]) for row in rows] == [
        ("html", "prose", None, None), ("warc", "prose", "http://x/", None),
    ]  # fmt: skip
    assert rows[0]["text"] == rows[1]["text"] == sentences


def test_every_format_is_read_from_a_bucket_as_from_a_disk(tmp_path, s3_environment):
    lines = b'{"text": "one", "id": "1"}\n{broken\n'
    pq.write_table(pa.table({"text": ["two"]}), tmp_path / "b.parquet")
    files = {
        "a.jsonl.gz": gzip.compress(lines), "a.jsonl.zst": zstandard.compress(lines), "b.parquet": (tmp_path / "b.parquet").read_bytes(),
        "c.txt": b"three", "d.go": b"package main", "e.html": b"<p></p>",
        "f.warc": b"WARC/1.0\r\nWARC-Type: request\r\nContent-Length: 0\r\n\r\n",
    }  # fmt: skip
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="every-format")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        s3.put_object(Bucket="every-format", Key=f"in/{name}", Body=content)
    local, remote = rows_of(tmp_path), rows_of("s3://every-format/in")
    assert len(local) == 9
    assert [{**row, "id": "", "source": ""} for row in remote] == [{**row, "id": "", "source": ""} for row in local]


class _Busy(BaseHTTPRequestHandler):
    """An S3 that says it is busy, whatever it is asked."""

    def do_GET(self):
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_what_a_storage_that_does_not_answer_holds_is_not_set_aside(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in {
            "ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "ACCESS_KEY_ID": "x",
            "SECRET_ACCESS_KEY": "x",
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setattr("cluster.patience._WAITS_S", ())
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        with pytest.raises(OSError, match="AWS Error"):
            list(read_files(pa.table({"uri": ["s3://busy/a.jsonl"], "format": ["jsonl"]})))
        server.shutdown()
