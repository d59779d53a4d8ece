from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from train.corpus import Sequences
from train.tuning.config import TuneConfig
from train.tuning.data import open_data, read_data
from train.tuning.preferences import Pairs


@pytest.fixture
def talks(tmp_path: Path) -> str:
    path = tmp_path / "talks.jsonl"
    turns = [[{"role": "user", "content": f"add {n}"}, {"role": "assistant", "content": f"return {n}" * (1 + n % 3)}] for n in range(30)]
    path.write_text("\n".join(json.dumps({"messages": turn}) for turn in turns))
    return str(path)


def test_conversations_are_packed_and_counted(tiny_model_dir: Path, talks: str, tmp_path: Path):
    config = TuneConfig(model=str(tiny_model_dir), data=(talks,), output="o", held_out=0.2, max_length=64)
    data = read_data(config, tiny_model_dir)
    data.train.save(tmp_path / "train")
    found = open_data(str(tmp_path / "train"), config)
    assert isinstance(found, Sequences)
    assert len(found) < 24 == data.counts["pairs_trained"]
    assert data.counts["pairs_trained"] + data.counts["pairs_held_out"] == 30 == data.counts["pairs_in"]
    assert found.num_labels(np.arange(len(found))) == data.train.num_labels(np.arange(len(found)))


def test_pairs_are_kept_together(tiny_model_dir: Path, tmp_path: Path):
    lines = [json.dumps({"prompt": f"add {n}", "chosen": f"return {n}", "rejected": "no " * (1 + 40 * (n == 7))}) for n in range(10)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    config = TuneConfig(
        model=str(tiny_model_dir), data=(str(tmp_path / "pairs.jsonl"),), output="o", objective="preferences", max_length=32, held_out=0.2
    )
    data = read_data(config, tiny_model_dir)
    assert data.counts["dropped.too_long"] == 1
    assert len(data.train) + len(data.held_out) == 2 * 9  # rows; the long answer took its pair with it
    Pairs(data.train, np.arange(len(data.train), dtype=np.float32)).save(tmp_path / "pairs")
    source = open_data(str(tmp_path / "pairs"), config)
    assert source.batch(np.array([2, 0])).reference.tolist() == [4, 5, 0, 1]
    assert source.num_labels(np.array([2, 0])) == 2
