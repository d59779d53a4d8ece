from __future__ import annotations

import json
from pathlib import Path

import boto3
import pytest
import torch

from train.checkpoint import Checkpoints, newest, restore
from train.elastic.pieces import Piece
from train.state import Record, Skip, State


class Row:
    """A stepper whose only parameter is a row of numbers, cut evenly among the workers."""

    precision = "float32"

    def __init__(self, value: float = 0.0, rank: int = 0, world_size: int = 1, name: str = "row") -> None:
        self.rank, self.world_size, self.name, self.published = rank, world_size, name, 0
        self.mine = torch.full((12 // world_size,), value)

    def pieces(self) -> list[Piece]:
        return [Piece(self.name, self.rank * len(self.mine), len(self.mine), self.mine, 0, {})]

    def publish(self) -> None:
        self.published += 1


def state(step: int, skips: int = 0) -> State:
    records = [Record(n + 1, 1.5, 10, 0.1, 1e-3, 1.0, n) for n in range(step)]
    return State(step, records, [Skip(step, step, step + skips - 1, 9.0, "spike")] if skips else [])


def save(place: Path, stepper: Row, now: State, attempt: str = "a") -> Checkpoints:
    checkpoints = Checkpoints(str(place), stepper, attempt)
    checkpoints.save(now)
    checkpoints.settle()
    return checkpoints


def test_the_newest_whole_checkpoint_is_found_and_two_are_kept(tmp_path: Path):
    assert newest(str(tmp_path)) is None
    writer = Row()
    checkpoints = Checkpoints(str(tmp_path), writer, "a")
    for step in (5, 10, 15):
        writer.mine.fill_(step)
        checkpoints.save(state(step))
        writer.mine.fill_(-1)  # the copy was taken before
    assert checkpoints.cost_s is None or checkpoints.cost_s > 0
    checkpoints.settle()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000010-step-10.a", "00000015-step-15.a"]
    found, reader = newest(str(tmp_path)), Row()
    assert found is not None
    assert restore(found, reader) == state(15)
    assert reader.mine.tolist() == [15.0] * 12
    assert reader.published == 1


@pytest.mark.parametrize("damage", ["marker gone", "file truncated", "file gone"])
def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path, damage: str):
    save(tmp_path, Row(5), state(5))
    save(tmp_path, Row(10), state(10))
    last = tmp_path / "00000010-step-10.a"
    part = last / "part-00000.safetensors"
    if damage == "marker gone":
        (last / "state.json").rename(last / "state.json.writing-0")
    elif damage == "file truncated":
        part.write_bytes(part.read_bytes()[:-1])
    else:
        part.unlink()
    found = newest(str(tmp_path))
    assert found is not None
    assert found.state.step == 5


@pytest.mark.parametrize(("wrote", "reads"), [(2, 1), (1, 2), (3, 2), (1, 3), (2, 3)])
def test_any_number_of_workers_reads_what_any_other_wrote(tmp_path: Path, wrote: int, reads: int):
    for rank in range(wrote):
        writer = Row(rank=rank, world_size=wrote)
        writer.mine.copy_(torch.arange(12.0)[rank * len(writer.mine) :][: len(writer.mine)])
        save(tmp_path, writer, state(3))
    found = newest(str(tmp_path))
    assert found is not None
    assert found.world_size == wrote
    readers = [Row(-1, rank, reads) for rank in range(reads)]
    assert all(restore(found, reader).step == 3 for reader in readers)
    assert torch.cat([reader.mine for reader in readers]).tolist() == list(range(12))


@pytest.mark.parametrize("last", [0, 1])
def test_the_last_worker_commits_whoever_it_is(tmp_path: Path, last: int):
    save(tmp_path, Row(1, 1 - last, 2), state(3))
    assert newest(str(tmp_path)) is None
    save(tmp_path, Row(1, last, 2), state(3))
    marker = json.loads((tmp_path / "00000003-step-3.a" / "state.json").read_text())
    assert list(marker["files"]) == ["part-00000.safetensors", "part-00001.safetensors"]


def test_what_an_earlier_group_left_unfinished_is_no_part_of_a_later_ones(tmp_path: Path):
    save(tmp_path, Row(1, 1, 2), state(3), "a")  # its worker 0 died
    save(tmp_path, Row(2, 0, 2), state(3), "b")
    assert newest(str(tmp_path)) is None
    save(tmp_path, Row(2, 1, 2), state(3), "b")
    found = newest(str(tmp_path))
    assert found is not None
    assert found.uri.endswith(".b")
    save(tmp_path, Row(3), state(6), "c")
    assert sorted(p.name[-1] for p in tmp_path.iterdir()) == ["b", "c"]


def test_a_run_that_went_back_goes_on_from_where_it_went_back_to(tmp_path: Path):
    save(tmp_path, Row(1), state(10))
    save(tmp_path, Row(2), state(8, skips=4))
    found = newest(str(tmp_path))
    assert found is not None
    assert found.state == state(8, skips=4)


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path: Path):
    save(tmp_path, Row(1), state(3))
    found = newest(str(tmp_path))
    assert found is not None
    with pytest.raises(ValueError, match=r"has no weight of other from element 0 on; it is a checkpoint of another model"):
        restore(found, Row(name="other"))


def test_an_upload_that_fails_is_heard_of_at_the_next(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    checkpoints = Checkpoints(str(tmp_path / "file"), Row(), "a")
    checkpoints.save(state(1))
    with pytest.raises(OSError):
        checkpoints.save(state(2))


def test_checkpoints_on_s3(s3_environment: dict[str, str]):
    boto3.client("s3").create_bucket(Bucket="bucket")
    for rank in range(2):
        checkpoints = Checkpoints("s3://bucket/run/checkpoints", Row(7, rank, 2), "a")
        checkpoints.save(state(4))
        checkpoints.settle()
    found, reader = newest("s3://bucket/run/checkpoints"), Row()
    assert found is not None
    assert restore(found, reader).step == 4
    assert reader.mine.tolist() == [7.0] * 12
