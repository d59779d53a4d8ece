from __future__ import annotations

import json
from pathlib import Path

import pytest

from train.checkpoint import newest, restore, save
from train.loop import Record, State


class Notes:
    """A stepper whose weights are one line of text."""

    rank = 0
    precision = "float32"

    def __init__(self, text: str = "", world_size: int = 1) -> None:
        self.text, self.world_size = text, world_size

    def save(self, folder: Path) -> None:
        (folder / "zero").mkdir()
        (folder / "zero" / "weights.pt").write_text(self.text)

    def load(self, folder: Path) -> None:
        self.text = (folder / "zero" / "weights.pt").read_text()

    def barrier(self) -> None:
        pass


def state(step: int) -> State:
    return State(step, [Record(step, 1.5, 10, 0.1, 1e-3, 1.0)])


def test_the_newest_whole_checkpoint_is_found_and_two_are_kept(tmp_path: Path):
    place = str(tmp_path / "checkpoints")
    assert newest(place) is None
    for step in (5, 10, 15):
        save(place, Notes(f"weights {step}"), state(step))
    assert sorted(p.name for p in Path(place).iterdir()) == ["step-00000010", "step-00000015"]
    found, reader = newest(place), Notes()
    assert found is not None
    assert restore(found, reader) == state(15)
    assert reader.text == "weights 15"


@pytest.mark.parametrize("damage", ["marker gone", "file truncated", "file gone"])
def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path, damage: str):
    place = str(tmp_path / "checkpoints")
    save(place, Notes("weights 5"), state(5))
    save(place, Notes("weights 10"), state(10))
    last = tmp_path / "checkpoints" / "step-00000010"
    if damage == "marker gone":
        (last / "state.json").rename(last / "state.json.writing")
    elif damage == "file truncated":
        (last / "zero" / "weights.pt").write_text("wei")
    else:
        (last / "zero" / "weights.pt").unlink()
    found = newest(place)
    assert found is not None
    assert found.state.step == 5


def test_another_number_of_workers_is_refused_in_one_line(tmp_path: Path):
    save(str(tmp_path), Notes("x", world_size=1), state(3))
    found = newest(str(tmp_path))
    assert found is not None
    with pytest.raises(ValueError, match="saved by 1 workers, this run has 2"):
        restore(found, Notes(world_size=2))


def test_only_worker_zero_commits(tmp_path: Path):
    other = Notes("x", world_size=2)
    other.rank = 1
    save(str(tmp_path), other, state(3))
    assert newest(str(tmp_path)) is None
    save(str(tmp_path), Notes("x", world_size=2), state(3))
    assert json.loads((tmp_path / "step-00000003" / "state.json").read_text())["files"] == {"zero/weights.pt": 1}
