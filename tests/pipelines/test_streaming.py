"""Ray Data set up for the length of a block: as promised inside, as it was outside."""

from __future__ import annotations

import logging
import time

import pyarrow as pa
import pytest
import ray.data
from pyarrow import fs as arrow_fs

import sterna
from pipelines.streaming import streaming

SETTINGS = ("enable_progress_bars", "target_max_block_size", "print_on_execution_start", "raise_original_map_exception")


def found() -> dict[str, object]:
    context = ray.data.DataContext.get_current()
    level = logging.getLogger("ray.data").level
    return {
        **{name: getattr(context, name, None) for name in SETTINGS},
        "ordered": context.execution_options.preserve_order,
        "level": level,
    }


@pytest.fixture
def unusual():
    """Settings that are nobody's default, so that a restored default is seen."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before, level = {name: getattr(context, name) for name in SETTINGS if hasattr(context, name)}, logger.level
    context.target_max_block_size = 12_345_678
    context.enable_progress_bars = True
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)
    for name, value in before.items():
        setattr(context, name, value)


@pytest.mark.parametrize("ordered", [False, True])
def test_outside_everything_is_as_it_was_even_after_a_failure(unusual, ordered, monkeypatch):
    monkeypatch.setattr(ray.data.DataContext.get_current().execution_options, "preserve_order", ordered)
    before = found()
    with streaming():
        inside = found()
        with pytest.raises(KeyError), streaming():
            raise KeyError
        assert found() == inside, "one inside another"
    assert found() == before
    with pytest.raises(RuntimeError, match="broken off"), streaming():
        raise RuntimeError("broken off")
    assert found() == before


def test_inside_it_is_ordered_and_quiet(unusual, capsys):
    with streaming():
        inside = found()
    assert inside["ordered"]
    assert not inside["enable_progress_bars"], "nobody watches: stderr is no terminal here"
    assert inside["level"] == logging.ERROR
    assert inside["target_max_block_size"] < 128 << 20


def test_results_come_in_the_order_of_the_input(ray_session):
    """The first block is the slowest: by the time it is done the others wait for it."""

    def slow_at_first(table):
        time.sleep(0.6 if table["n"][0].as_py() == 0 else 0.0)
        return table

    with streaming():
        blocks = ray.data.from_arrow([pa.table({"n": [n]}) for n in range(6)]).map_batches(
            slow_at_first, batch_format="pyarrow", batch_size=None
        )
        assert [row["n"] for row in blocks.take_all()] == list(range(6))


def write_to_a_full_disk(table):
    with arrow_fs.LocalFileSystem().open_output_stream("/dev/full") as stream:
        stream.write(bytes(1 << 20))
    return table


def test_a_full_disk_is_told_in_one_line_wherever_the_task_runs(ray_session):
    with streaming(), pytest.raises(Exception) as caught:
        ray.data.from_arrow(pa.table({"n": [1]})).map_batches(write_to_a_full_disk, batch_format="pyarrow").take_all()
    assert sterna._user_error(caught.value).startswith("no space is left")
    with pytest.raises(OSError, match="No space") as caught:
        ray.get(ray.remote(write_to_a_full_disk).remote(1))
    assert sterna._user_error(caught.value).startswith("no space is left")
    assert sterna._user_error(OSError("no archive")) is None
