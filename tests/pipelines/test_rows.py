"""Rows by position: every format, broken pieces set aside, one schema, ranges."""

from __future__ import annotations

import doctest
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelines.rows
from pipelines.rows import PIECE, input_digest, input_files, stage


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_worked_examples():
    assert doctest.testmod(pipelines.rows).failed == 0


def test_every_format_is_read_in_the_order_of_names(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [{"prompt": "a0"}, {"prompt": "a1"}])
    with gzip.open(folder / "b.jsonl.gz", "wt") as out:
        out.write('{"prompt": "b0"}\n\n{"prompt": "b1"}')
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(b'{"prompt": "c0"}\n'))
    pq.write_table(pa.table({"prompt": ["d0", "d0"]}), folder / "d.parquet")
    (folder / "notes.md").write_text("not rows")
    (folder / "_hidden.jsonl").write_text("{}")
    staged = stage(str(folder), str(tmp_path / "staged"))
    assert staged.rows(0, staged.num_rows)["prompt"].to_pylist() == ["a0", "a1", "b0", "b1", "c0", "d0", "d0"]
    assert staged.unreadable == ()
    assert [name.rsplit("/", 1)[-1] for name in input_files(str(folder / "[ab]*"))] == ["a.jsonl", "b.jsonl.gz"]


def test_what_cannot_be_read_is_set_aside_with_its_place(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b'{"prompt": "one"}\nbroken\n[1]\n{"prompt": "\xff"}\n{"prompt": "two"}\n')
    whole = gzip.compress("".join(json.dumps({"prompt": f"{n} {n * 7919 % 1009}"}) + "\n" for n in range(5000)).encode())
    (folder / "b.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    pq.write_table(pa.table({"prompt": ["three"]}), folder / "c.parquet")
    (folder / "d.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    staged = stage(str(folder), str(tmp_path / "staged"))
    found = [(u.source.rsplit("/", 1)[-1], u.reason.split(":")[0]) for u in staged.unreadable]
    assert found == [
        ("a.jsonl", "not JSON"),
        ("a.jsonl", "a JSON object is needed, not list"),
        ("a.jsonl", "not JSON"),
        ("b.jsonl.gz", "not readable from here on"),
        ("d.parquet", "not readable from here on"),
    ]
    assert [u.position for u in staged.unreadable[:3]] == [2, 3, 4]
    prompts = staged.rows(0, staged.num_rows)["prompt"].to_pylist()
    assert prompts[:2] == ["one", "two"]
    assert prompts[-1] == "three"
    assert 1000 < len(prompts) < 5000


def test_half_of_a_surrogate_pair_is_set_aside(tmp_path):
    r"""Valid JSON may hold \ud83d alone, which no text column can; the whole pair is a character."""
    source = tmp_path / "a.jsonl"
    source.write_bytes(rb'{"prompt": "\ud83d\udc26"}' + b"\n" + rb'{"prompt": "\ud83d"}' + b"\n" + rb'{"\uDC26": 1}' + b"\n")
    staged = stage(str(source), str(tmp_path / "staged"))
    assert staged.rows(0, 1)["prompt"].to_pylist() == ["🐦"]
    assert staged.num_rows == 1
    assert [u.position for u in staged.unreadable] == [2, 3]


def test_columns_of_several_kinds_become_text(tmp_path):
    rows = [{"prompt": "a", "meta": 1, "score": 1}, {"prompt": "b", "meta": {"k": [1]}, "score": 2.5}, {"prompt": "c", "meta": "x"}]
    staged = stage(str(write_jsonl(tmp_path / "a.jsonl", rows)), str(tmp_path / "staged"))
    assert staged.rows(0, 3).to_pylist() == [
        {"prompt": "a", "meta": "1", "score": 1.0},
        {"prompt": "b", "meta": '{"k": [1]}', "score": 2.5},
        {"prompt": "c", "meta": "x", "score": None},
    ]


def test_columns_that_hold_json_beside_texts_are_known(tmp_path):
    """Wherever the kinds meet: in one piece, or in two of the same file."""
    rows = [{"prompt": "a", "meta": 1, "late": "x"}, {"prompt": "b", "meta": [1], "late": "y"}]
    rows += [{"prompt": f"p{n}", "meta": "m"} for n in range(PIECE)] + [{"prompt": "c", "late": ["z"]}]
    staged = stage(str(write_jsonl(tmp_path / "a.jsonl", rows)), str(tmp_path / "staged"))
    assert staged.mixed == {"meta", "late"}
    assert stage("no longer looked at", str(tmp_path / "staged")) == staged
    assert all(column.metadata is None for column in staged.rows(0, 3).schema)


def nested(levels, value=1):
    for level in range(levels):
        value = [value] if level % 2 else {"k": value}
    return value


@pytest.mark.parametrize("odd", [{}, [{}], {"a": {"b": {}}}, nested(20), nested(60), [nested(90)], 2**70])
def test_a_value_that_parquet_cannot_hold_becomes_text(tmp_path, odd):
    rows = [{"prompt": "a", "meta": odd}, {"prompt": "b"}]
    staged = stage(str(write_jsonl(tmp_path / "a.jsonl", rows)), str(tmp_path / "staged"))
    found = staged.rows(0, 2).to_pylist()
    assert [row["prompt"] for row in found] == ["a", "b"]
    assert found[0]["meta"] in (odd, json.dumps(odd))
    assert found[1]["meta"] is None


@pytest.mark.parametrize("levels", [101, 400, 200_000])
def test_a_line_that_is_nested_without_end_is_set_aside(tmp_path, levels):
    source = tmp_path / "a.jsonl"
    source.write_text('{"prompt": "a"}\n{"prompt": ' + "[" * levels + "]" * levels + '}\n{"prompt": "b"}\n')
    staged = stage(str(source), str(tmp_path / "staged"))
    assert staged.rows(0, 2)["prompt"].to_pylist() == ["a", "b"]
    assert [(u.position, u.reason) for u in staged.unreadable] == [(2, "nested deeper than 100 levels")]


def test_pieces_with_other_columns_get_one_schema(tmp_path):
    rows = [{"prompt": f"p{n}", **({"late": n} if n >= PIECE else {})} for n in range(PIECE + 5)]
    staged = stage(str(write_jsonl(tmp_path / "a.jsonl", rows)), str(tmp_path / "staged"))
    assert staged.rows(PIECE - 1, PIECE + 1).to_pylist() == [
        {"prompt": f"p{PIECE - 1}", "late": None},
        {"prompt": f"p{PIECE}", "late": PIECE},
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any), st.data())
def test_any_range_is_the_same_rows(tmp_path_factory, sizes, data):
    folder = tmp_path_factory.mktemp("rows")
    expected = []
    for index, size in enumerate(sizes):
        part = [f"{index}.{n}" for n in range(size)]
        pq.write_table(pa.table({"prompt": pa.array(part, pa.string())}), folder / f"{index}.parquet")
        expected += part
    staged = stage(str(folder), str(folder / "_staged"))
    first = data.draw(st.integers(0, staged.num_rows - 1))
    last = data.draw(st.integers(first + 1, staged.num_rows))
    assert staged.rows(first, last)["prompt"].to_pylist() == expected[first:last]


def test_a_finished_staging_is_taken_as_it_is(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "before"}])
    first = stage(str(source), str(tmp_path / "staged"))
    digest = input_digest(str(source))
    write_jsonl(source, [{"prompt": "after"}] * 3)
    assert stage(str(source), str(tmp_path / "staged")) == first
    assert input_digest(str(source)) != digest


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, None, "no such file, or no parquet or jsonl files"),
        ("a.csv", b"x", "not a format that can be read"),
        ("a.jsonl", b"\n", "not one row could be read"),
        ("a.jsonl", b"oops\n", r"not one row could be read: .*a\.jsonl, line 1: not JSON"),
        ("a.parquet", b"oops", "not one row could be read"),
    ],
)
def test_an_input_without_rows_is_one_line(tmp_path, name, content, message):
    source = tmp_path / (name or "absent")
    if name:
        source.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        stage(str(source), str(tmp_path / "staged"))
    assert "\n" not in str(error.value)
