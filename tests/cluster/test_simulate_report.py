"""The report: what is printed and drawn. The comparison itself is tested in test_simulate."""

import dataclasses
from types import SimpleNamespace

import pytest

from cluster.simulate_report import Row, Simulation, write_plot

ROW = Row("ours", 0.4, 0.99, 0.0005, 0.01, 0.002, 0.001, 0.0, 0.2, 12.0, 321, 1e6)
MADE = Simulation(("a", "b"), 7.0, 100, (dataclasses.replace(ROW, name="on-demand", cost=1.0), ROW), 0.35, 0.25)


def test_a_row_is_a_line_with_units():
    line = str(MADE).splitlines()[-2]
    assert line.split() == ["ours", "0.400", "99.00", "%", "0.050", "%", "1.000", "%", "0.200", "%", "0.100", "%", "0.000", "%", "0.2", "s",
                            "12.0", "s", "321"]  # fmt: skip
    assert str(MADE).splitlines()[0] == "2 zones, 7.0 days, up to 100 machines: a, b"


def test_the_summary_is_plain_data():
    assert MADE.summary()["rows"][1]["failed"] == 0.0005


def test_a_picture_needs_a_kind_that_can_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="cannot be written"):
        write_plot(MADE, {"on-demand": SimpleNamespace(samples=())}, str(tmp_path / "plot.xyz"))
