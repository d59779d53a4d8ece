"""A worker's decision to leave, on a machine whose end is known; the whole life of workers is in tests/chaos/test_training.py."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch

from train.checkpoint import Checkpoints, newest
from train.elastic.pieces import Piece
from train.elastic.worker import Ear, Lookout
from train.state import Record, State


class Alone:
    """A stepper of one worker with three weights."""

    rank, world_size, precision = 0, 1, "float32"

    def pieces(self) -> list[Piece]:
        return [Piece("w", 0, 3, torch.arange(3.0), 0, {})]

    def publish(self) -> None: ...

    def barrier(self) -> None: ...


class Notice:
    """What a drain watch knows of a machine whose end is `left_s` away."""

    node_id = "here"

    def __init__(self, left_s: float | None, announced_s: float | None = None) -> None:
        self.deadline = None if left_s is None else time.time() + left_s
        self.announced = {} if announced_s is None else {"here": time.time() + announced_s}


def state(step: int) -> State:
    return State(step, [Record(n + 1, 1.0, 1, 0.1, 1e-3, 1.0, n) for n in range(step)])


def lookout(folder: Path, watch: Notice, told: bool = False) -> Lookout:
    ear = Ear(None)
    ear.told = told
    return Lookout(watch, ear, Checkpoints(str(folder), Alone(), "a"), Alone(), torch.device("cpu"))


@pytest.mark.parametrize(
    "watch", [Notice(5.0), Notice(math.inf), Notice(None, announced_s=3.0)], ids=["deadline", "some time", "announced"]
)
def test_a_worker_on_a_machine_that_goes_commits_the_step_and_leaves(tmp_path: Path, watch: Notice):
    looks = lookout(tmp_path, watch)
    assert looks(state(4))
    assert looks.ended is not None
    assert (looks.ended.why, looks.ended.step, looks.ended.state) == ("left", 4, None)
    saved = newest(str(tmp_path))
    assert saved is not None
    assert saved.state.step == 4


def test_with_figures_it_goes_on_while_there_is_time(tmp_path: Path):
    looks = lookout(tmp_path, Notice(None))
    looks._checkpoints.save(state(1))
    looks._checkpoints.settle()
    assert not looks(state(2))
    looks._watch = Notice(60.0)
    assert not looks(state(3))
    looks._watch = Notice(1.0)
    assert looks(state(4))
    assert "save now" in looks.ended.reason


def test_a_step_that_is_committed_already_is_not_saved_again(tmp_path: Path):
    looks, now = lookout(tmp_path, Notice(None), told=True), state(5)
    looks._checkpoints.save(now)
    assert looks(now)
    assert looks.ended.why == "grew"
    assert [path.name for path in tmp_path.iterdir()] == ["00000005-step-5.a"]
