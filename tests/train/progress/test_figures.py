from __future__ import annotations

import pytest

from train.progress.figures import training_figures
from train.state import Record, Skip, State


def test_curves_are_thinned_and_spikes_are_told():
    records = [Record(i + 1, 10.0 - i / 100, 100, 0.5, 1e-3, 1.0, i) for i in range(1000)]
    skip = Skip(20, 20, 27, 12.5, "loss 12.500, where 9.900 ± 0.100 was usual")
    figures = training_figures("Pretraining loss", State(1000, records, [skip]), {"predicted": ([1, 1000], [5.0, 5.0])})
    assert [series["name"] for series in figures["loss"]["series"]] == ["loss", "predicted"]
    curve = figures["loss"]["series"][0]
    assert len(curve["x"]) <= 400
    assert curve["x"][-1] == 1000
    assert sum(curve["y"]) / len(curve["y"]) == pytest.approx(sum(r.loss for r in records) / 1000, rel=1e-2)
    assert figures["speed"]["series"][0]["y"][5] == 200
    assert figures["skips"]["rows"] == [[20, "20 to 27", "loss 12.500, where 9.900 ± 0.100 was usual"]]


def test_a_run_of_one_step_has_figures():
    assert "skips" not in training_figures("Tuning loss", State(1, [Record(1, 2.0, 10, 1.0, 1e-3, 1.0)]), {})
