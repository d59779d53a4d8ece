"""Records of plain text, jsonl and parquet; their ids and dates."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.curate import records
from pipelines.curate.records import Fields, read_jsonl, read_parquet, read_text, seconds_since_1970


@given(st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(2100, 1, 1)))
def test_a_date_is_the_same_as_text_as_datetime_and_as_seconds(moment):
    seconds = moment.replace(tzinfo=UTC).timestamp()
    assert seconds_since_1970(moment) == seconds_since_1970(moment.isoformat()) == seconds_since_1970(seconds) == seconds


@pytest.mark.parametrize("value", [None, True, "", "May 1970", [], {}, float("nan"), float("inf"), b"1970-01-01"])
def test_what_is_no_date_is_none(value):
    assert seconds_since_1970(value) is None


def test_a_line_has_its_text_its_id_and_its_date(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x", "url": "u", "at": 5, "id": "not this"}\n\n{"body": 1, "url": "v"}\n3\n')
    records = list(read_jsonl(str(tmp_path / "a.jsonl"), Fields(text="body", id="url", date="at")))
    assert [(r.text, r.source_id, r.date, r.problem.split(":")[0]) for r in records] == [
        ("x", "u", 5.0, ""), (None, "v", None, "no_text"), (None, None, None, "no_text"),
    ]  # fmt: skip


DAY_S = 86400


@pytest.mark.parametrize(
    ("kind", "values", "seconds"),
    [
        (pa.timestamp("ns"), [1, 2_000_000_001, None], [1e-9, 2.000000001, None]),
        (pa.timestamp("us"), [2**55, 0, None], [2**55 / 1e6, 0.0, None]),  # the year 3111
        (pa.timestamp("s", "Europe/Berlin"), [2**40, 5, -7], [2.0**40, 5.0, -7.0]),  # the year 36812
        (pa.date32(), [1, None, 3_000_000], [DAY_S, None, 3_000_000.0 * DAY_S]),
        (pa.date64(), [DAY_S * 1000, 0, None], [DAY_S, 0.0, None]),
        (pa.time32("s"), [1, 2, 3], [None, None, None]),
        (pa.int64(), [1, 2, 3], [1.0, 2.0, 3.0]),
        (pa.string(), ["1970-01-02", "May", None], [DAY_S, None, None]),
    ],
)
def test_the_dates_of_a_parquet_file_are_seconds_whatever_it_calls_them(tmp_path, kind, values, seconds):
    pq.write_table(pa.table({"text": ["a", "b", "c"], "date": pa.array(values, kind)}), tmp_path / "a.parquet")
    found = list(read_parquet(str(tmp_path / "a.parquet"), Fields()))
    assert [record.text for record in found] == ["a", "b", "c"]
    assert [record.date for record in found] == pytest.approx(seconds)


def test_rows_that_python_cannot_hold_do_not_stop_the_others(tmp_path):
    """Parquet's writers need not look whether text is UTF-8, and its days go on after the year 9999."""
    raw = [b"one", b"caf\xe9", b"three"]
    ends = np.cumsum([0, *map(len, raw)], dtype=np.int32)
    text = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(ends), pa.py_buffer(b"".join(raw))])
    for name, ids in (
        ("text", text),
        ("day", pa.array([1, 10**15, None], pa.timestamp("s"))),
        ("zone", pa.array([1] * 3, pa.timestamp("s", "No/Where"))),
    ):
        pq.write_table(pa.table({"text": text, "id": ids, "date": text}), tmp_path / f"{name}.parquet")
        found = list(read_parquet(str(tmp_path / f"{name}.parquet"), Fields()))
        assert [record.text for record in found] == ["one", None, "three"]
        assert [record.problem.split(":")[0] for record in found] == ["", "encoding", ""]
        assert found[1].source_id is None
        assert [record.date for record in found] == [None] * 3


PIECES = st.lists(st.sampled_from(["word ", "ünï ", "日本", "\n", "\n\n", "\r\n", " \n", "long" * 9]), max_size=60).map("".join)


@given(PIECES, st.integers(1, 40))
def test_a_long_text_is_cut_into_parts_that_make_it_up_however_it_is_read(tmp_path_factory, text, block_bytes):
    path = tmp_path_factory.mktemp("long") / "book.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_PART_CHARS", 30)
        patch.setattr(records, "_BLOCK_BYTES", block_bytes)
        parts = [record.text for record in read_text(str(path), Fields())]
    assert "".join(parts) == text
    assert all(len(part) <= 30 or len(part.splitlines()) == 1 for part in parts)
    assert len(parts) == 1 or all(parts)


@pytest.mark.parametrize(("end", "reason"), [(b"\xff", "encoding"), (b"\0", "binary"), (b"\xe6\x97", "encoding")])
def test_the_parts_before_a_broken_one_are_kept(tmp_path, monkeypatch, end, reason):
    monkeypatch.setattr(records, "_PART_CHARS", 30)
    monkeypatch.setattr(records, "_BLOCK_BYTES", 100)
    (tmp_path / "a.txt").write_bytes(b"a paragraph of text\n\n" * 20 + end)
    (tmp_path / "a.py").write_bytes(b"a paragraph of text\n\n" * 20 + end)
    found = list(read_text(str(tmp_path / "a.txt"), Fields()))
    assert len(found) > 10
    assert [record.problem.split(":")[0] for record in found] == [""] * (len(found) - 1) + [reason]
    assert [record.problem.split(":")[0] for record in read_text(str(tmp_path / "a.py"), Fields())] == [reason]
