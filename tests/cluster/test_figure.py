"""Figure data is plain JSON of a known shape, or an assertion where it is made."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cluster.figure import bars, cells, lines, table, text, timeline


def test_every_kind_is_plain_json_even_from_numpy_values():
    made = [
        lines("t", "x", "y", {"a": (np.arange(3), np.float32([1, 2, 3]))}, log_x=True),
        bars("t", "y", {"g": {"k": np.int64(3)}}),
        timeline("t", {"lane": [(np.float64(0), 1, "span")]}, marks=[(np.float32(0.5), "drain")]),
        table("t", ["a", "b"], [[1, "x"], (2, "y")]),
        text("t", "body"),
        cells("t", "layer", "share", {"0": {"q": (np.float32(0.5), "int8")}}),
    ]
    assert [figure["kind"] for figure in made] == ["lines", "bars", "timeline", "table", "text", "cells"]
    assert json.loads(json.dumps(made)) == made


def test_curves_of_unequal_length_are_a_bug():
    with pytest.raises(AssertionError, match="a has 2 x and 1 y values"):
        lines("t", "x", "y", {"a": ([1, 2], [1])})


def test_rows_of_another_length_than_the_columns_are_a_bug():
    with pytest.raises(AssertionError, match="a row's length"):
        table("t", ["a", "b"], [[1]])
