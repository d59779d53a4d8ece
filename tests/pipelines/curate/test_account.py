"""The account: counts add up or nothing is published, and what is shown was counted."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipelines.curate.account
from pipelines.curate.account import balance, figures, headline, nothing_left

REASONS = st.sampled_from(["", "duplicate.exact", "duplicate.near", "gopher.stop_words", "unreadable.json"])


def sample(reason, number, **given_):
    return {
        "reason": reason,
        "id": f"{number:03d}",
        "source": f"{number}.md",
        "duplicate_of": None,
        "similarity": None,
        "excerpt": None,
    } | given_


def row(reason, documents, kind="prose", samples=()):
    return {"reason": reason, "kind": kind, "documents": documents, "num_bytes": 0, "samples": list(samples)}


METRICS = {"bytes_in": 4_000_000, "task_seconds": {"read": 2.0, "minhash": 0.5}, "seconds": {"documents": 4.0}}
ROWS = st.lists(st.builds(row, REASONS, st.integers(1, 9), st.sampled_from(["code", "prose"])), max_size=12)


def test_the_worked_examples():
    assert doctest.testmod(pipelines.curate.account).failed == 0


@given(ROWS)
def test_every_document_is_in_the_counts_once(rows):
    documents_in = sum(r["documents"] for r in rows)
    counts = balance(documents_in, rows)
    assert counts["documents_in"] == documents_in == counts["kept"] + sum(n for name, n in counts.items() if name.startswith("dropped."))
    for r in rows:
        assert counts[f"dropped.{r['reason']}" if r["reason"] else "kept"] >= r["documents"]
    assert 0 not in [n for name, n in counts.items() if name.startswith("dropped.")]


@given(ROWS, st.sampled_from([-1, 1]))
def test_a_document_too_many_or_too_few_stops_the_run(rows, off):
    with pytest.raises(AssertionError, match="documents in"):
        balance(sum(r["documents"] for r in rows) + off, rows)


@given(ROWS)
def test_figures_show_what_the_counts_say(rows):
    counts = balance(sum(r["documents"] for r in rows), rows)
    shown = figures(rows, METRICS, [0, 2, 1], 0.7)
    assert {f"dropped.{name}": n for name, n in shown["dropped"]["groups"]["dropped"].items()} == {
        name: n for name, n in counts.items() if name.startswith("dropped.")
    }
    assert sum(shown["kept"]["groups"]["kept"].values()) == counts["kept"]


def test_two_samples_of_each_reason_whatever_piece_they_come_from():
    near = [sample("duplicate.near", n, duplicate_of="kept", similarity=0.87654, excerpt="text") for n in (5, 3, 9)]
    rows = [row("duplicate.near", 1, samples=[near[0]]), row("", 3), row("c4.lorem_ipsum", 1, samples=[sample("c4.lorem_ipsum", 7)])]
    rows.append(row("duplicate.near", 2, kind="code", samples=near[1:]))
    shown = figures(rows, METRICS, [0], 0.8)
    assert shown["audit"]["rows"] == [[f"{n:03d}", "kept", "0.877", f"{n}.md"] for n in (3, 5, 9)]
    assert shown["samples"]["rows"] == [
        ["c4.lorem_ipsum", "7.md", "", "", ""],
        ["duplicate.near", "3.md", "kept", "0.877", "text"],
        ["duplicate.near", "5.md", "kept", "0.877", "text"],
    ]


def test_how_alike_the_near_duplicates_are_and_where_the_time_goes():
    shown = figures([], METRICS, [0, 2, 1], 0.7)
    assert shown["similarities"]["groups"]["dropped"] == {"0.700": 0.0, "0.800": 2.0, "0.900": 1.0}
    assert shown["similarities"]["ordered"]
    assert shown["steps"]["rows"] == [["read", "2.00", "2.0"], ["minhash", "0.50", "8.0"], ["all of: documents", "4.00", "1.0"]]


def test_the_headline_has_the_share_the_size_and_what_was_there_before():
    assert headline({"documents_in": 3, "kept": 3}, 1_500_000) == "3 of 3 documents kept (100 %), 1.5 MB"
    assert headline({"documents_in": 3, "kept": 0}, 0, 1).endswith("kept (0 %), 0.0 MB, new beside 1 earlier corpus")


@pytest.mark.parametrize(
    ("reasons", "unreadable", "message"),
    [
        ({}, [], "holds no document"),
        ({"unreadable.json": 1200}, ["a.jsonl: not JSON"], "none of its 1,200 records can be read; the first: a.jsonl: not JSON"),
        ({"unreadable.json": 1, "c4.a": 1}, ["a.jsonl: not JSON"], "no document is left of 2 (unreadable.json 1, c4.a 1)"),
        ({"a": 5, "b": 9, "c": 1, "d": 1, "e": 1}, [], "no document is left of 17 (b 9, a 5, c 1, d 1);"),
    ],
)
def test_what_to_do_when_nothing_is_left(reasons, unreadable, message):
    assert message in nothing_left(reasons, unreadable)
