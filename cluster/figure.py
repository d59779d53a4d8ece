"""Figure data: what a stage writes into its manifest so that the report can draw it.

Promise: plain JSON values with one of six shapes, checked when they are made; no stage imports a plotting library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Figure", "bars", "cells", "lines", "table", "text", "timeline"]

Figure = dict[str, Any]


def lines(
    title: str,
    x: str,
    y: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    log_x: bool = False,
    dots: Sequence[str] = (),
) -> Figure:
    """Curves: `series` maps a name to (x values, y values) of equal length; those named in `dots` are points without a line."""
    for name, (xs, ys) in series.items():
        assert len(xs) == len(ys), f"{title}: {name} has {len(xs)} x and {len(ys)} y values"
    curves = [{"name": n, "x": [float(v) for v in xs], "y": [float(v) for v in ys]} for n, (xs, ys) in series.items()]
    return {"kind": "lines", "title": title, "x": x, "y": y, "log_x": log_x, "series": curves, "dots": list(dots)}


def bars(title: str, y: str, groups: Mapping[str, Mapping[str, float]], *, ordered: bool = False) -> Figure:
    """Bars: `groups` maps a series name to {label: value}; a single series is a plain bar chart.

    `ordered` labels (a histogram's bins) keep their order; others may be sorted, and the smallest folded into one bar.
    """
    values = {name: {label: float(value) for label, value in group.items()} for name, group in groups.items()}
    return {"kind": "bars", "title": title, "y": y, "groups": values, "ordered": ordered}


def cells(title: str, rows: str, value: str, table: Mapping[str, Mapping[str, tuple[float, str]]]) -> Figure:
    """A heat map: `table` maps row -> column -> (value that colours the cell, its label); `rows` and `value` say what those are."""
    marked = {row: {column: [float(value), label] for column, (value, label) in cells.items()} for row, cells in table.items()}
    return {"kind": "cells", "title": title, "rows": rows, "value": value, "cells": marked}


def timeline(title: str, lanes: Mapping[str, Sequence[tuple[float, float, str]]], marks: Sequence[tuple[float, str]] = ()) -> Figure:
    """Lanes of (start second, end second, label) spans, with vertical marks at (second, label)."""
    return {
        "kind": "timeline",
        "title": title,
        "lanes": {name: [[float(a), float(b), label] for a, b, label in spans] for name, spans in lanes.items()},
        "marks": [[float(t), label] for t, label in marks],
    }


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Figure:
    """Rows of printable values under `columns`."""
    assert all(len(row) == len(columns) for row in rows), f"{title}: a row's length differs from the columns'"
    return {"kind": "table", "title": title, "columns": list(columns), "rows": [list(row) for row in rows]}


def text(title: str, body: str) -> Figure:
    """Preformatted text, such as a sample or a diff."""
    return {"kind": "text", "title": title, "body": body}
