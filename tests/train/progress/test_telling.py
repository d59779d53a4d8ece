from __future__ import annotations

from pathlib import Path

import torch

from train.progress.log import FILE
from train.progress.meter import Meter
from train.progress.telling import note, telling
from train.recipe import Recipe
from train.state import Record, Skip, State

RECIPE = Recipe(steps=100, global_batch=4, micro_batch=2, sequence_length=32, learning_rate=1e-3)


def test_worker_zero_tells_and_the_others_are_silent(tmp_path: Path, monkeypatch):
    told, shown, runs = [], [], []
    monkeypatch.setattr("train.progress.telling.ray_gauges", lambda run: runs.append(run) or shown.append)
    meter = Meter(RECIPE, torch.device("cpu"), flops_per_token=1e6, peak=1e9, joules=lambda: 7200.0)
    with telling("pretrain", str(tmp_path / "0"), State(), meter, told.append) as voice:
        voice.report(Record(1, 3.0, 100, 0.5, 1e-3, 1.0, 0))
        voice.undone(Skip(1, 1, 2, 9.0, "loss 9.000"))
        voice.report(Record(2, 3.0, 100, 0.5, 1e-3, 1.0, 3))
    assert [news["undone"] for news in told][-1] == ["loss 9.000: back to step 1, past windows 1 to 2 of the data"]
    assert told[0]["note"].startswith("loss 3.000  200 tokens/s")
    assert "2.0 Wh" in note(shown[0])
    assert len((tmp_path / "0" / FILE).read_text().splitlines()) == 3
    with telling("pretrain", str(tmp_path / "1"), State(), None, told.append) as voice:
        voice.report(Record(1, 3.0, 100, 0.5, 1e-3, 1.0, 0))
    assert not (tmp_path / "1").exists()
    assert len(told) == 2
    assert runs == ["pretrain 0"]
