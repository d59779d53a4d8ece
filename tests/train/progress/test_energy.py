from __future__ import annotations

from pathlib import Path

import pytest
import torch

from train.progress.energy import energy_counter, rapl_counter


def test_counters_of_the_processors_wrap_around(tmp_path: Path):
    assert rapl_counter(tmp_path) is None
    for zone, value in (("intel-rapl:0", 900_000_000), ("intel-rapl:1", 100), ("intel-rapl:0:0", 7)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(f"{value}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("999999999\n")
    joules = rapl_counter(tmp_path)
    assert joules is not None
    assert joules() == 0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("50000100")
    assert joules() == pytest.approx(200 + 50)
    assert joules() == pytest.approx(250)


def test_a_machine_that_tells_nothing_is_no_error():
    joules = energy_counter(torch.device("cpu"))
    assert joules is None or joules() >= 0
