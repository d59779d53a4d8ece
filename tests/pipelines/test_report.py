"""The report: every kind of figure is drawn, nothing leaves the page, markup in data stays data."""

import os
import re
import xml.etree.ElementTree as ElementTree

import pytest

from cluster import figure
from cluster.artifact import Manifest, publish
from pipelines.config import ReportConfig
from pipelines.report import render, report, write_page

FIGURES = {
    "loss": figure.lines("Loss", "step", "nats", {"train": ([1, 2, 3], [5.0, 4.0, 3.5]), "held out": ([1, 3], [5.1, 3.9])}, log_x=True),
    "drops": figure.bars("Dropped", "documents", {"all": {"short <50 words>": 12, "duplicate": 3}, "code": {"duplicate": 2}}),
    "moves": figure.timeline("Moves", {"node a": [(0, 4, "alive")], "stream 1": [(0, 2, "on a"), (2, 5, "on b")]}, [(2.0, "drain")]),
    "rows": figure.table("Rows", ["name", "value"], [["<script>alert(1)</script>", 3], ["b", 0.25]]),
    "diff": figure.text("Diff", "a & b < c"),
    "cells": figure.cells("Cells", "layer", "share", {"0": {"q": (0.5, "int8"), "v": (1.0, "keep")}, "1": {"q": (0.25, "int4")}}),
}


def manifest(**changes):
    return Manifest(
        **{"stage": "curate", "inputs": {}, "config": {}, "counts": {"kept": 3.0}, "figures": FIGURES, "headline": "3 kept", **changes}
    )


def test_all_kinds_are_drawn_as_inline_svg_that_parses():
    page = render("T", [("folder", manifest())])
    drawings = [piece.split("</svg>")[0] + "</svg>" for piece in page.split("<svg")[1:]]
    assert len(drawings) == 4
    for drawing in drawings:
        ElementTree.fromstring("<svg" + drawing)
    assert "short &lt;50 words&gt;" in page
    assert "3 kept" in page


def test_the_page_needs_nothing_else_and_data_cannot_run():
    page = render("T", [("folder", manifest())])
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for outside in ('src="http', 'href="http', "@import", "url(http"):
        assert outside not in page


def test_a_figure_that_cannot_be_drawn_names_itself_and_spares_the_page():
    page = render("T", [("folder", manifest(figures={"odd": {"kind": "lines", "title": "x"}, "diff": FIGURES["diff"]}))])
    assert "odd" in page
    assert "cannot be drawn" in page
    assert "a &amp; b &lt; c" in page


def test_each_of_two_folders_of_a_stage_has_its_own_place():
    page = render("T", [("runs/old", manifest()), ("runs/new", manifest()), ("runs/tokens", manifest(stage="tokenize"))])
    anchors = re.findall(r'<section id="([^"]+)"', page)
    assert len(set(anchors)) == 3
    for anchor, name in zip(anchors, ("curate: runs/old", "curate: runs/new", "tokenize"), strict=True):
        assert f'<a href="#{anchor}">{name}</a>' in page


def test_many_dotted_counts_are_summed_up():
    def told(number):
        dropped = {f"dropped.a.b_{n}": n for n in range(number)}
        page = render("T", [("f", manifest(counts={"documents_in": 9.0, "kept": 2.0, **dropped}))])
        return re.findall(r"<span>([a-z. \d]+) <b>([\d,]+)</b>", page)

    assert told(30) == [("documents in", "9"), ("kept", "2"), ("dropped", "435")]
    assert told(2)[2:] == [("dropped.a.b 0", "0"), ("dropped.a.b 1", "1")]


def test_report_reads_folders_and_writes_one_file(tmp_path):
    config = ReportConfig(folders=("unused",))
    with publish(str(tmp_path / "corpus"), stage="curate", inputs={}, config=config) as draft:
        draft.figures = FIGURES
        draft.headline = "kept 3"
    page = report(ReportConfig(folders=(str(tmp_path / "corpus"),), output=str(tmp_path / "out" / "page.html")))
    assert "kept 3" in page.read_text()
    assert [p.name for p in page.parent.iterdir()] == ["page.html"]


def test_a_device_is_not_replaced_by_a_page(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe: is a device, a pipe or a socket; give a file"):
        write_page(tmp_path / "pipe", "page")
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        report(ReportConfig(folders=(str(tmp_path / "nothing"),), output=str(tmp_path / "page.html")))
    assert not (tmp_path / "page.html").exists()
