"""What the benchmark of the planner's memory compares: 2 GiB of state and more, two unlike shapes, real processes."""

from __future__ import annotations

import pytest

from benchmarks import plan_memory
from benchmarks.plan_memory import SHAPES, measured, predicted, recipe_of, table
from train.plan.shapes import shape_of_width


def test_what_is_shown_has_two_gibibytes_of_state_and_is_of_two_kinds():
    shown = [SHAPES[name] for name in ("wide", "deep")]
    assert all(16 * shape.num_parameters >= 2 * 2**30 for shape in shown)
    assert shown[0].hidden_size > 1.5 * shown[1].hidden_size
    assert shown[1].num_layers > 2 * shown[0].num_layers
    assert shown[0].tie_embeddings != shown[1].tie_embeddings


def test_the_prediction_is_the_planners_without_libraries():
    terms = predicted(SHAPES["wide"], recipe_of(2, True))
    assert terms.runtime == 0
    assert terms.copies > 0
    assert terms.activations < predicted(SHAPES["wide"], recipe_of(2, False)).activations


def test_the_table_says_how_far_off_the_worst_is():
    one = {"shape": "wide", "parameters": 2**27, "zero_stage": 1, "gradient_checkpointing": True, "measured": 2.0 * 2**30}
    rows = [one | {"predicted": gib * 2**30, "error": gib / 2 - 1} for gib in (2.1, 1.8)]
    lines = table(rows).splitlines()
    assert lines[1].split() == ["wide", "134.2", "M", "2.00", "1", "yes", "2.10", "2.00", "+5.0%"]
    assert lines[-1] == "2 configurations, at most 10.0% off; GiB"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_real_workers_are_measured(stage, monkeypatch):
    shape = shape_of_width(256, vocab_size=1024, max_length=plan_memory.LENGTH)
    workers = measured(shape, recipe_of(stage, False))
    assert len(workers) == 2
    for worker in workers:
        assert worker["before"] > 100 * 2**20
        assert 12 * shape.num_parameters < worker["built"] <= worker["stepped"] <= worker["saved"] < 2**30
