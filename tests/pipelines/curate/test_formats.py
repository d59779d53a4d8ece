"""A name has one format or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.curate.formats import CODE, SUFFIXES, format_of, known_formats


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.py", "py"), ("src/A.Java", "java"), ("x.jsonl.zst", "jsonl"), ("x.warc.gz", "warc"), ("index.HTM", "html"), ("a.b.md", "md"),
        ("lib.h", "c"), ("a.tar.gz", None), ("a.gz", None), ("Makefile", None), (".py", "py"), ("py", None), ("data.json", None),
    ],
)  # fmt: skip
def test_the_suffix_tells_the_format(name, expected):
    assert format_of(name) == expected


def test_the_document_counts_the_languages():
    text = (Path(__file__).resolve().parents[3] / "docs" / "curation.md").read_text()
    assert f"| source code | {len(CODE)} languages by suffix:" in text


def test_no_suffix_stands_for_two_formats_and_prose_is_no_code():
    assert len(CODE) >= 40
    assert set(SUFFIXES.values()) - CODE == {"md", "rst", "txt", "tex", "jsonl", "parquet", "html", "warc"}
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)
    assert ".jsonl.zst" in known_formats()
