from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.mfu import measured
from benchmarks.train import RECIPE, Contestant, checkpoints_table, losses_table, speed_table
from benchmarks.workers.training import CONTESTANTS, sequences_of
from train.architectures import make_config, make_model
from train.plan.shapes import shape_of_width

SHAPE = shape_of_width(64, vocab_size=256, max_length=64)
SHORT = replace(RECIPE, steps=4, global_batch=4, micro_batch=2, sequence_length=64)


def test_contestants_do_the_same_work(monkeypatch: pytest.MonkeyPatch):
    """Batch by batch, the bare loop's loss is ours: the same order, sequences, optimizer and clipping."""
    turns: list[None] = []
    monkeypatch.setattr("benchmarks.workers.training.turn", lambda: turns.append(None))
    losses = {}
    for name, contestant in CONTESTANTS.items():
        losses[name] = contestant(make_model(make_config(SHAPE), seed=0), SHORT, sequences_of(SHORT, SHAPE.vocab_size))
        assert len(turns) == SHORT.steps * len(losses)
    assert losses["sterna"] == pytest.approx(losses["bare"], rel=1e-4)  # it decays norms, too
    assert losses["checkpointed"] == losses["sterna"]


def test_a_contestant_steps_when_it_is_its_turn():
    contestant = Contestant("sterna", SHAPE, SHORT, 1)
    for _ in range(SHORT.steps):
        contestant.step()
    figures = contestant.end()
    assert len(figures["losses"]) == SHORT.steps
    assert len(figures["seconds"]) == SHORT.steps - 2
    assert figures["peak_bytes"] > 1e8


def test_tables_say_what_is_met():
    figures = {"losses": {"one process": [4.0, 2.0], "ZeRO 0": [4.0, 2.0001], "ZeRO 1": [4.0, 2.01]}}
    assert "ZeRO 0 on 2 workers: largest relative difference 5.0e-05 (met: 1e-4)" in losses_table(figures)
    assert "ZeRO 1 on 2 workers: largest relative difference 5.0e-03 (MISSED: 1e-4)" in losses_table(figures)
    one = {"bare": 1.0, "trainer": 1.25, "sterna": 1.1}
    table = speed_table({name: {"seconds": [seconds] * 8, "peak_bytes": 1e9} for name, seconds in one.items()}, "bare")
    assert "sterna ÷ bare: 0.91 (0.91 to 0.91) (MISSED: 0.95)" in table
    assert "sterna ÷ trainer: 1.14 (1.14 to 1.14) (met: 1.0)" in table


def test_a_checkpoints_cost_is_told_as_a_share_of_a_minute():
    told = checkpoints_table({"with": [12.0, 13.0, 12.5], "without": [11.5, 12.5, 12.0]})
    assert "it costs 0.50 (0.50 to 0.50) s" in told
    assert "at one a minute: 0.83 (0.83 to 0.83) % of wall time (met: 5 %)" in told
    assert "MISSED" in checkpoints_table({"with": [16.0], "without": [12.0]})


def test_the_plain_loop_measures_its_own_share_of_the_machine():
    found = measured(SHAPE, replace(SHORT, steps=5), torch.device("cpu"))
    assert 0 < found["mfu"] < 1
    assert found["parameters"] == SHAPE.num_parameters
