"""A shuffle on storage: every row in its shard once, in order; written again, the same bytes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage import list_files, resolve
from pipelines.curate.shards import forget, gather, scatter, shard_of

ROWS = st.lists(st.tuples(st.integers(0, 4), st.text(max_size=5)), max_size=20)


def table(rows):
    return pa.table(
        {"n": pa.array([n for n, _ in rows], pa.int64()), "text": pa.array([t for _, t in rows], pa.string())},
    )


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_each_row_is_in_its_shard_once_in_the_order_of_the_files(tmp_path_factory, files):
    folder = str(tmp_path_factory.mktemp("shuffle") / "made")
    for number, rows in enumerate(files):
        scatter(table(rows), np.array([n for n, _ in rows], np.int64), 5, folder, number)
    for shard in range(5):
        found = gather(folder, range(len(files)), shard, table([]).schema)
        assert found.to_pylist() == [{"n": n, "text": t} for rows in files for n, t in rows if n == shard]
    forget(folder)
    assert list_files(*resolve(folder)) == []


def test_a_task_that_is_run_again_writes_the_same_bytes(tmp_path):
    rows = [(n % 3, str(n)) for n in range(100)]
    for _ in range(2):
        scatter(table(rows), np.array([n for n, _ in rows]), 3, str(tmp_path), 7)
    (file,) = tmp_path.iterdir()
    once = file.read_bytes()
    scatter(table(rows), np.array([n for n, _ in rows]), 3, str(tmp_path), 7)
    assert (file.name, file.read_bytes()) == ("000007.arrow", once)


def test_what_was_never_written_is_not_taken_for_empty(tmp_path):
    with pytest.raises(FileNotFoundError):
        gather(str(tmp_path), [0], 0, table([]).schema)
    assert gather(str(tmp_path), [], 0, table([]).schema).num_rows == 0


@given(st.lists(st.integers(0, (1 << 63) - 1), max_size=50), st.integers(1, 9))
def test_equal_keys_share_a_shard(keys, shards):
    numbers = np.array(keys, np.int64)
    found = shard_of(numbers, shards)
    assert found.tolist() == shard_of(numbers.astype(np.uint64), shards).tolist()
    assert all(0 <= shard < shards for shard in found.tolist())
    assert len(set(zip(keys, found.tolist(), strict=True))) == len(set(keys))


def test_neighbours_spread():
    assert np.bincount(shard_of(np.arange(8000), 8), minlength=8).min() > 800
