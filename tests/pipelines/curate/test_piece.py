"""Pieces: whole or absent, the same again when written again."""

from __future__ import annotations

import boto3
import pyarrow as pa
import pytest

from pipelines.curate.piece import count_rows, read_piece, refuse_if_elsewhere, whole_file, write_piece

TABLE = pa.table({"id": ["a", "b", None], "text": pa.array(["x\n", "日本", ""], pa.large_string()), "n": [1, 2, 3]})


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_piece_is_read_as_it_was_written(tmp_path, compression):
    uri = f"{tmp_path}/made/on/the/way/piece.parquet"
    write_piece(TABLE, uri, compression=compression)
    assert read_piece(uri).equals(TABLE)
    assert read_piece(uri, ["n", "text"]).equals(TABLE.select(["n", "text"]))
    assert read_piece(uri, []).num_columns == 0


def test_rows_are_counted_where_they_are(tmp_path):
    uris = [f"{tmp_path}/{name}.parquet" for name in "ab"]
    write_piece(TABLE, uris[0])
    assert count_rows(uris) == 3
    write_piece(TABLE, uris[1])
    assert count_rows(uris) == 6
    assert count_rows([]) == 0
    refuse_if_elsewhere("out", "rows", 6, 6)
    with pytest.raises(ValueError, match="out: 5 of 6 rows are in this folder: the workers wrote to other machines' disks; use s3://"):
        refuse_if_elsewhere("out", "rows", 5, 6)


def test_an_empty_piece_keeps_its_columns(tmp_path):
    write_piece(TABLE.slice(0, 0), f"{tmp_path}/a.parquet")
    assert read_piece(f"{tmp_path}/a.parquet").schema == TABLE.schema


def test_written_again_it_is_the_same_bytes_in_one_file(tmp_path):
    uri = tmp_path / "piece.parquet"
    write_piece(TABLE, str(uri))
    first = uri.read_bytes()
    write_piece(TABLE, str(uri))
    assert uri.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["piece.parquet"]


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path)
    request.getfixturevalue("s3_environment")
    boto3.client("s3").create_bucket(Bucket="pieces")
    return "s3://pieces"


def write_half(uri):
    with whole_file(uri) as stream:
        stream.write(b"half of it")
        raise MemoryError


def test_a_writer_that_dies_leaves_the_piece_as_it_was(folder):
    """The name is taken only once everything is written: readers look for it."""
    write_piece(TABLE, f"{folder}/piece.parquet")
    for name in ("piece", "other"):
        with pytest.raises(pa.ArrowException, match="codec"):
            write_piece(TABLE.slice(1), f"{folder}/{name}.parquet", compression="no such codec")
        with pytest.raises(MemoryError):
            write_half(f"{folder}/{name}.parquet")
    assert read_piece(f"{folder}/piece.parquet").equals(TABLE)
    with pytest.raises(FileNotFoundError):
        read_piece(f"{folder}/other.parquet")
