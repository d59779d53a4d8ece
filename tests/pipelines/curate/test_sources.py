"""Files found, sampled, cut into chunks and read; what cannot be read becomes a row with its reason."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate import sources
from pipelines.curate.document import DOCUMENT
from pipelines.curate.sources import SourceFile, chunked, find_files, installed_text, read_files, sampled


def rows_of(*paths, text_field="text"):
    files = find_files([str(p) for p in paths])
    table = pa.table({"uri": [f.uri for f in files], "format": [f.format for f in files]})
    rows = pa.concat_tables([DOCUMENT.empty_table(), *read_files(table, text_field)]).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return rows


def seen(rows):
    return [(row["source"].rsplit("/", 1)[1], row["ordinal"], row["text"], row["reason"]) for row in rows]


def test_text_files_of_every_format_with_their_kind(tmp_path):
    for name in ("a.py", "b.md", "c.rst", "d.TXT", "e.png", "f.pyc"):
        (tmp_path / name).write_text(f"text of {name}")
    rows = rows_of(tmp_path)
    assert [(r["source"].rsplit("/", 1)[1], r["format"], r["kind"]) for r in rows] == [
        ("a.py", "py", "code"), ("b.md", "md", "prose"), ("c.rst", "rst", "prose"), ("d.TXT", "txt", "prose"),
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
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(data)[:-2000])
    rows = rows_of(tmp_path)
    assert rows[-1]["reason"] == "unreadable.file"
    assert len(rows) > 1000
    assert {row["reason"] for row in rows[:-2]} == {None}


def test_parquet_with_nulls_another_column_and_a_broken_file(tmp_path):
    pq.write_table(pa.table({"body": ["one", None, "two"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really")
    assert seen(rows_of(tmp_path, text_field="body")) == [
        ("a.parquet", 0, "one", None), ("a.parquet", 1, None, "unreadable.no_text"), ("a.parquet", 2, "two", None),
        ("b.parquet", 0, None, "unreadable.no_text"), ("c.parquet", 0, None, "unreadable.parquet"),
    ]  # fmt: skip


def test_undecodable_binary_and_vanished_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_bytes(b"zero\0byte")
    table = pa.table({"uri": [str(tmp_path / n) for n in ("a.txt", "b.txt", "gone.txt")], "format": ["txt"] * 3})
    rows = pa.concat_tables(read_files(table, "text")).to_pylist()
    assert [row["reason"] for row in rows] == ["unreadable.encoding", "unreadable.binary", "unreadable.missing"]
    assert all(row["excerpt"] for row in rows)


def test_a_file_whose_name_is_not_utf8_is_read_like_any_other(tmp_path):
    folder = os.fsencode(tmp_path)
    for name in (b"caf\xe9.txt", b"caf\xe8.txt", b"data\xff.jsonl", b"table\xff.parquet", b"undecodable\xff.md"):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(b'{"text": "a"}')
    Path(os.fsdecode(folder + b"/undecodable\xff.md")).write_bytes(b"\xff")
    files = find_files([str(tmp_path)])
    chunks = chunked(sampled(files, 1000, 0), 1)
    rows = pa.concat_tables([t for chunk in chunks for t in read_files(chunk, "text")]).to_pylist()
    assert len({row["id"] for row in rows}) == 5
    assert sorted(seen(rows)) == [
        (r"caf\udce8.txt", 0, '{"text": "a"}', None), (r"caf\udce9.txt", 0, '{"text": "a"}', None), (r"data\udcff.jsonl", 0, "a", None),
        (r"table\udcff.parquet", 0, None, "unreadable.parquet"), (r"undecodable\udcff.md", 0, None, "unreadable.encoding"),
    ]  # fmt: skip
    Path(os.fsdecode(folder + b"/caf\xe9.txt")).unlink()
    assert "unreadable.missing" in {row["reason"] for chunk in chunks for t in read_files(chunk, "text") for row in t.to_pylist()}


def test_a_long_text_file_is_cut_at_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_PART_CHARS", 40)
    text = "\n\n".join(f"paragraph {i} of the book" for i in range(9)) + "\n\n" + "x" * 100 + "\n" + "a line\n" * 20
    (tmp_path / "book.txt").write_text(text)
    (tmp_path / "code.py").write_text(text)
    parts = [row["text"] for row in rows_of(tmp_path / "book.txt")]
    assert "".join(parts) == text
    assert len(parts) > 6
    assert all(len(part) <= 40 or part.strip() == "x" * 100 for part in parts)
    assert len(rows_of(tmp_path / "code.py")) == 1


def test_globs_and_folders_skip_what_is_hidden(tmp_path):
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.txt", ".git/d.txt", "__pycache__/e.py", "sub/f.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def names(*inputs):
        return [f.uri.removeprefix(f"{tmp_path}/") for f in find_files(inputs)]

    assert names(str(tmp_path)) == ["a.txt", "sub/b.txt", "sub/deep/c.txt", "sub/f.py"]
    assert names(f"{tmp_path}/*.txt") == ["a.txt"]
    assert names(f"{tmp_path}/sub/**/*.txt") == ["sub/b.txt", "sub/deep/c.txt"]
    assert names(f"{tmp_path}/s?b/[ab].txt", f"{tmp_path}/sub") == ["sub/b.txt", "sub/deep/c.txt", "sub/f.py"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("[!_]*.py", ["[!].py", "^c.py", "abc.py", "b\\d.py"]),
        ("[_^]*.py", ["^c.py", "_abc.py"]),
        ("[^]*.py", ["^c.py"]),
        ("b[\\]d.py", ["b\\d.py"]),
        ("x[!a]*.py", []),
        ("[a-b]*.py", ["abc.py", "b\\d.py"]),
        ("[!]*.py", ["[!].py"]),
    ],
)
def test_sets_of_characters_mean_what_they_mean_to_glob(pattern, expected):
    names = ["[!].py", "^c.py", "_abc.py", "abc.py", "b\\d.py", "x/e.py"]
    assert list(filter(sources._matcher(pattern), names)) == expected


def test_a_pattern_that_is_none_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"\[z-a\]\.txt: not a pattern"):
        find_files([f"{tmp_path}/[z-a].txt"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "no such file or folder"),
        ("empty", "holds no text to read"),
        ("blank", "every file is empty"),
        ("image.png", "not a format"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.txt").touch()
    (tmp_path / "image.png").touch()
    with pytest.raises(ValueError, match=message) as caught:
        find_files([str(tmp_path / name)])
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_default_input_is_on_every_machine():
    found = find_files(())
    assert any(f.uri.endswith("/json/decoder.py") for f in found)
    assert any("numpy" in f.uri for f in found)
    assert {f.format for f in found} <= {"py", "md", "rst", "txt"}
    assert all(f.uri.startswith(installed_text()) for f in found)


FILES = st.lists(st.integers(0, 1000), min_size=1, max_size=40).map(
    lambda sizes: [SourceFile(f"/data/{i:03d}.txt", "txt", size, 0, f"{i:03d}.txt") for i, size in enumerate(sizes)]
)


@settings(deadline=None)
@given(FILES, st.integers(1, 20_000), st.integers(0, 3))
def test_a_sample_fits_and_does_not_depend_on_the_order(files, max_bytes, seed):
    if not any(0 < f.num_bytes <= max_bytes - max_bytes // 100 for f in files):
        return
    chosen = sampled(files, max_bytes, seed)
    assert sum(f.num_bytes for f in chosen) <= max_bytes
    assert chosen == sampled(files[::-1], max_bytes, seed)


def test_a_cap_below_the_smallest_file_says_so():
    with pytest.raises(ValueError, match="max_bytes: 3 is less than any file holds"):
        sampled([SourceFile("/a.txt", "txt", 10, 0, "a.txt")], 3, 0)


@settings(deadline=None)
@given(FILES, st.integers(0, 50))
def test_chunks_hold_every_file_once_in_order(files, num_partitions):
    if not sum(f.num_bytes for f in files):
        return
    chunks = chunked(files, num_partitions)
    assert [os.fsdecode(uri) for c in chunks for uri in c["uri"].to_pylist()] == [f.uri for f in files]
    assert len(chunks) <= max(1, num_partitions or 1)
