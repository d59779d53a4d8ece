"""What evaluate reads: every kind of file, and what is wrong with the others in one line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.held_out import Document, read_documents


def test_kinds_of_files_and_their_order(tmp_path):
    (tmp_path / "a.txt").write_text("prose")
    (tmp_path / "b.py").write_text("x = 1")
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "one", "kind": "web"}) + "\n\n" + json.dumps({"text": " "}) + "\nbroken\n")
    pq.write_table(pa.table({"text": ["two", "", None], "kind": ["code", "code", "code"]}), tmp_path / "d.parquet")
    found, unreadable = read_documents([str(tmp_path / name) for name in ("d.parquet", "a.txt", "c.jsonl.gz", "b.py")])
    assert found == [Document("two", "code"), Document("prose", "prose"), Document("one", "web"), Document("x = 1", "code")]
    assert unreadable == 2, "an empty text and a broken line; a blank line is nothing"


def test_a_tokens_folder_gives_its_held_out_documents(tokens_dir):
    found, unreadable = read_documents([str(tokens_dir)])
    assert len(found) == pq.read_metadata(tokens_dir / "held_out.parquet").num_rows
    assert unreadable == 0


def test_bytes_are_counted_as_stored():
    assert Document("naïve", "prose").num_bytes == 6


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.txt", None, "no such file"),
        ("empty.txt", b"  ", "no text to judge"),
        ("bad.jsonl", b"[1]\n{}\n", "no text to judge .2 unreadable lines"),
        ("half.jsonl", b'{"text": "\\ud83d"}\n' + b"[" * 100_000, "no text to judge .2 unreadable lines"),
        ("cut.txt.gz", gzip.compress(b"text" * 99)[:-9], "cannot be read"),
        ("broken.parquet", b"not parquet", "not a parquet file"),
        ("picture.png", b"x", "a .png file is not text"),
    ],
)
def test_mistakes_are_one_line(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        read_documents([str(tmp_path / name)])
    assert "\n" not in str(error.value)


def test_a_parquet_without_text_says_what_it_has(tmp_path):
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="has no column `text`, but body"):
        read_documents([str(tmp_path / "x.parquet")])


def test_a_line_separator_inside_json_does_not_end_the_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "one\u2028two\x85three"}\n', encoding="utf-8")
    assert read_documents([str(tmp_path / "x.jsonl")]) == ([Document("one\u2028two\x85three", "text")], 0)
