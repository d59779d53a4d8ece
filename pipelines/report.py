"""The one renderer: figure data out of manifests -> a page with plots that needs no network and no other file.

Promise: whatever a stage recorded is drawn; a figure that cannot be drawn names itself in its place instead of failing
the page. Stages never plot: they write data (cluster/figure.py), so the look changes here and nowhere else.
Price: matplotlib, imported here only; SVG inline, text kept as text.
"""

from __future__ import annotations

import io
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from cluster.artifact import Manifest, open_artifact
from cluster.console import say
from cluster.figure import Figure
from pipelines.config import ReportConfig
from pipelines.report_page import PAGE

__all__ = ["STAGES", "render", "report", "write_page"]

STAGES = ("curate", "tokenize", "plan", "pretrain", "tune", "compress", "evaluate", "trial", "generate", "drill")
_COLOURS = ("#2a6f97", "#e07a5f", "#3d9970", "#b5838d", "#6d597a", "#e9c46a", "#577590", "#bc4749")
_MARK = "#bc4749"
_MOST_BARS = 14
_MOST_DOTTED = 6


def report(config: ReportConfig) -> Path:
    """Draw the stage folders that `config` names; returns the page's path."""
    manifests = [(folder, open_artifact(folder, made_by=STAGES).manifest) for folder in config.folders]
    page = Path(config.output)
    write_page(page, render(config.title, manifests))
    say(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    return page


def write_page(page: Path, content: str) -> None:
    """The whole page or none; ValueError where it cannot be written."""
    scratch = page.with_name(page.name + ".partial")
    if page.is_dir():
        raise ValueError(f"{page}: is a folder; give a file such as {page}/report.html")
    if page.exists() and not page.is_file():  # it would be replaced, /dev/null too
        raise ValueError(f"{page}: is a device, a pipe or a socket; give a file")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(content, encoding="utf-8")
        scratch.replace(page)
    except OSError as error:
        raise ValueError(f"{page}: cannot be written ({error.strerror}); choose another --output") from None


def render(title: str, manifests: list[tuple[str, Manifest]], summary: list[str] | None = None) -> str:
    """The page for (folder, manifest) pairs, as HTML text."""
    sections = [_section(folder, manifest) for folder, manifest in manifests]
    stages = Counter(section["stage"] for section in sections)
    for number, section in enumerate(sections):
        again = stages[section["stage"]] > 1
        section["name"] = f"{section['stage']}: {section['folder']}" if again else section["stage"]
        section["anchor"] = f"{section['stage']}-{number}" if again else section["stage"]
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    return template.render(title=title, sections=sections, summary=summary or [])


def _section(folder: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "stage": manifest.stage,
        "folder": os.path.relpath(folder) if "://" not in folder else folder,
        "headline": manifest.headline,
        "seconds": f"{manifest.seconds:,.1f} s",
        "digest": manifest.digest[:12],
        "counts": [(name, _number(value)) for name, value in _summed(manifest.counts).items()],
        "figures": sorted((_draw(name, figure) for name, figure in manifest.figures.items()), key=lambda drawn: "svg" not in drawn),
    }


def _summed(counts: Mapping[str, float]) -> dict[str, float]:
    """The counts by their names for people; dotted ones (dropped.REASON) as their sum where they are many."""
    many = sum("." in name for name in counts) > _MOST_DOTTED
    told: dict[str, float] = {}
    for name, value in counts.items():
        plain = (name.split(".")[0] if many else name).replace("_", " ")
        told[plain] = told.get(plain, 0) + value
    return told


def _draw(name: str, figure: Figure) -> dict[str, Any]:
    try:
        if figure["kind"] == "table":
            rows = [[_number(cell) for cell in row] for row in figure["rows"]]
            return {"title": figure["title"], "columns": figure["columns"], "rows": rows}
        if figure["kind"] == "text":
            return {"title": figure["title"], "text": figure["body"]}
        return {"title": figure["title"], "svg": _plot(figure)}
    except (KeyError, TypeError, ValueError) as error:
        return {"title": name, "text": f"this figure's data cannot be drawn: {type(error).__name__}: {error}"}


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _plot(figure: Figure) -> str:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    style = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    style |= {"axes.grid": True, "grid.color": "#e6e8eb", "axes.axisbelow": True, "axes.edgecolor": "#9aa5b1", "legend.frameon": False}
    with plt.rc_context(style):
        canvas, axes = plt.subplots(figsize=(7.2, _height(figure)), layout="constrained")
        {"lines": _lines, "bars": _bars, "timeline": _timeline, "cells": _cells}[figure["kind"]](axes, figure)
        out = io.StringIO()
        canvas.savefig(out, format="svg", transparent=True)
        plt.close(canvas)
    svg = out.getvalue()
    return svg[svg.index("<svg") :]


def _height(figure: Figure) -> float:
    if figure["kind"] == "timeline":
        return max(2.2, 0.32 * len(figure["lanes"]) + 1.0)
    if figure["kind"] == "cells":
        return 0.26 * max(1, len(figure["cells"])) + 1.4
    if figure["kind"] == "bars":
        return 0.32 * max(1, sum(len(group) for group in _folded(figure).values())) + 0.9
    return 3.2


def _lines(axes: Any, figure: Figure) -> None:
    for index, curve in enumerate(figure["series"]):
        dots, colour = curve["name"] in figure.get("dots", ()), _COLOURS[index % len(_COLOURS)]
        mark = "o" if dots or len(curve["x"]) <= 12 else None
        axes.plot(curve["x"], curve["y"], label=curve["name"], color=colour, lw=0 if dots else 1.8, marker=mark, ms=3 if dots else 4)
    axes.set_xlabel(figure["x"])
    axes.set_ylabel(figure["y"])
    if figure["log_x"]:
        axes.set_xscale("log")
    if len(figure["series"]) > 1:
        axes.legend()


def _folded(figure: Figure) -> dict[str, dict[str, float]]:
    """A single long series without an order of its own, largest first and its tail in one bar; anything else as it is."""
    groups: dict[str, dict[str, float]] = figure["groups"]
    if figure["ordered"] or len(groups) != 1 or len(next(iter(groups.values()))) <= _MOST_BARS:
        return groups
    name, group = next(iter(groups.items()))
    ordered = sorted(group.items(), key=lambda item: -item[1])
    head, tail = ordered[: _MOST_BARS - 1], ordered[_MOST_BARS - 1 :]
    return {name: {**dict(head), f"{len(tail)} others": sum(value for _, value in tail)}}


def _bars(axes: Any, figure: Figure) -> None:
    groups = _folded(figure)
    labels = list(dict.fromkeys(label for group in groups.values() for label in group))
    height = 0.8 / max(1, len(groups))
    for index, (name, group) in enumerate(groups.items()):
        at = [row + index * height for row, label in enumerate(labels) if label in group]
        values = [group[label] for label in labels if label in group]
        drawn = axes.barh(at, values, height=height * 0.9, color=_COLOURS[index % len(_COLOURS)], label=name)
        axes.bar_label(drawn, [_number(v) for v in values], padding=3, fontsize=9)
    axes.set_yticks([row + height * (len(groups) - 1) / 2 for row in range(len(labels))], labels)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(labels) - 0.4 + height * (len(groups) - 1), -0.6)
    axes.margins(x=0.15)
    axes.set_xlabel(figure["y"])
    if len(groups) > 1:
        axes.figure.legend(loc="outside upper right", ncols=len(groups))


def _timeline(axes: Any, figure: Figure) -> None:
    kinds = list(dict.fromkeys(label for spans in figure["lanes"].values() for _, _, label in spans))
    colour = {label: _COLOURS[index % len(_COLOURS)] for index, label in enumerate(kinds)}
    for row, spans in enumerate(figure["lanes"].values()):
        for start, end, label in spans:
            axes.barh(row, max(end - start, 0.01), left=start, height=0.62, color=colour[label], edgecolor="white", lw=0.5)
    for at, label in figure["marks"]:
        axes.axvline(at, color=_MARK, lw=1.2, ls="--")
        axes.annotate(
            label, (at, 1.0), xycoords=("data", "axes fraction"), xytext=(3, 3), textcoords="offset points", fontsize=8, color=_MARK
        )
    axes.set_yticks(range(len(figure["lanes"])), list(figure["lanes"]))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds")
    handles = [axes.barh(0, 0, color=colour[label], label=label) for label in kinds]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)


def _cells(axes: Any, figure: Figure) -> None:
    rows = list(figure["cells"])
    columns = list(dict.fromkeys(column for cells in figure["cells"].values() for column in cells))
    grid = [[figure["cells"][row].get(column, (math.nan, ""))[0] for column in columns] for row in rows]
    most = max(value for cells in figure["cells"].values() for value, _ in cells.values())
    drawn = axes.imshow(grid, aspect="auto", cmap="YlGnBu", vmin=0.0, vmax=max(1.0, most))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            value, label = figure["cells"][row].get(column, (0.0, ""))
            axes.text(j, i, label, ha="center", va="center", fontsize=7, color="white" if value > 0.6 else "black")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.grid(visible=False)
    axes.set_ylabel(figure["rows"])
    axes.figure.colorbar(drawn, ax=axes, label=figure["value"])
