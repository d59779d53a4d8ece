from __future__ import annotations

import json
from pathlib import Path

import torch

from train.progress.log import FILE, MetricsLog
from train.progress.meter import Meter, Reading
from train.recipe import Recipe
from train.state import Record, Skip, State

RECIPE = Recipe(steps=100, global_batch=4, micro_batch=2, sequence_length=32, learning_rate=1e-3)


def reading(step: int, loss: float = 3.0) -> Reading:
    meter = Meter(RECIPE, torch.device("cpu"), flops_per_token=1e6, peak=1e9, joules=None)
    return meter.read(Record(step, loss, 100, 0.5, 1e-3, 1.0, step - 1))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_a_line_a_step_and_a_run_that_goes_on_drops_what_no_longer_counts(tmp_path: Path):
    log = MetricsLog(str(tmp_path), State())
    for step in (1, 2, 3):
        log.step(reading(step))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    log = MetricsLog(str(tmp_path), State(step=2))
    log.step(reading(3, loss=2.5))
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 3.0), (2, 3.0), (3, 2.5)]


def test_a_roll_back_leaves_its_own_line_in_place_of_the_steps(tmp_path: Path):
    log = MetricsLog(str(tmp_path), State())
    for step in (1, 2, 3):
        log.step(reading(step))
    log.undone(Skip(1, 1, 3, 9.0, "loss 9"))
    log.step(reading(2))
    assert [(line["step"], "undone" in line) for line in lines(tmp_path)] == [(1, False), (1, True), (2, False)]
