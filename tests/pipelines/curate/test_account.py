"""The account: counts add up or nothing is published, and what is shown was counted."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipelines.curate.account
from pipelines.curate.account import balance, figures, headline, nothing_left
from pipelines.curate.document import EXCERPT_CHARS

REASONS = st.sampled_from(["", "duplicate.exact", "duplicate.near", "gopher.stop_words", "unreadable.json"])


def sample(reason, number, **given_):
    return {
        "reason": reason,
        "id": f"{number:03d}",
        "source": f"/a/b/{number}.md",
        "ordinal": number,
        "source_id": None,
        "duplicate_of": None,
        "similarity": None,
        "excerpt": None,
    } | given_


def row(reason, documents, kind="prose", samples=()):
    return {"reason": reason, "kind": kind, "documents": documents, "num_bytes": 0, "samples": list(samples)}


METRICS = {"bytes_in": 4_000_000, "task_seconds": {"read": 2.0, "minhash": 0.5}, "seconds": {"documents": 4.0, "selection": 0.0}}
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


def near(number, **given_):
    return sample("duplicate.near", number, duplicate_of="kept", similarity=0.87654, excerpt="text", **given_)


def test_the_account_adds_up_family_by_family():
    reasons = {"duplicate.near": 2, "duplicate.exact": 5, "not_selected": 1, "gopher.hashes": 1}
    shown = figures([row("", 1), *(row(reason, number) for reason, number in reasons.items())], METRICS, [0], 0.8)
    assert shown["account"]["title"] == "Every document once: 10 read = 1 kept + 9 dropped"
    assert shown["account"]["rows"] == [
        ["read", 10, "100.0 %", ""],
        ["kept", 1, "10.0 %", ""],
        ["dropped: duplicate", 7, "70.0 %", "exact 5, near 2"],
        ["dropped: gopher", 1, "10.0 %", "hashes 1"],
        ["dropped: not selected", 1, "10.0 %", "not_selected 1"],
        ["kept and dropped", 10, "100.0 %", ""],
    ]


def test_two_samples_of_each_reason_whatever_piece_they_come_from():
    rows = [row("duplicate.near", 1, samples=[near(5)]), row("", 3), row("c4.lorem_ipsum", 1, samples=[sample("c4.lorem_ipsum", 7)])]
    rows.append(row("duplicate.near", 2, kind="code", samples=[near(3, source_id="named"), near(9)]))
    shown = figures(rows, METRICS, [3], 0.8)
    assert shown["audit"]["title"].endswith("(3 of 3)")
    places = ("b/3.md, named", "b/5.md, number 6", "b/9.md, number 10")
    assert shown["audit"]["rows"] == [[f"{n:03d}", "kept", "0.877", place, "text"] for n, place in zip((3, 5, 9), places, strict=True)]
    assert shown["samples"]["rows"] == [
        ["c4.lorem_ipsum (1)", "b/7.md, number 8", "", ""],
        ["duplicate.near (3)", "b/3.md, named", "kept (0.877)", "text"],
        ["duplicate.near (3)", "b/5.md, number 6", "kept (0.877)", "text"],
    ]


def test_what_is_longer_than_its_excerpt_ends_in_dots():
    samples = [sample("c4.a", 1, excerpt="x" * EXCERPT_CHARS), sample("c4.a", 2, excerpt="short")]
    shown = figures([row("c4.a", 2, samples=samples)], METRICS, [0], 0.8)
    assert [told[-1] for told in shown["samples"]["rows"]] == ["x" * EXCERPT_CHARS + "…", "short"]


def test_how_alike_the_near_duplicates_are_in_ten_bars():
    shown = figures([], METRICS, [0, 2, 1], 0.7)
    assert shown["similarities"]["groups"]["dropped"] == {"0.700": 0.0, "0.800": 2.0, "0.900": 1.0}
    assert shown["similarities"]["ordered"]
    joined = figures([], METRICS, [*range(20)], 0.8)["similarities"]["groups"]["dropped"]
    assert list(joined.items())[:2] == [("0.800", 1.0), ("0.820", 5.0)]
    assert (len(joined), sum(joined.values())) == (10, sum(range(20)))
    equal = figures([], METRICS, [0] * 10 + [7] + [0] * 9, 1.0)["similarities"]["groups"]["dropped"]
    assert equal == {"1.000": 7.0}, "bins that have one name are one"
    assert not {"similarities", "audit"} & figures([], METRICS, [0] * 20, 0.8).keys()  # nothing was alike: no empty plot


def test_how_fast_each_step_and_the_whole_were():
    shown = figures([row("", 800)], METRICS, [0], 0.7)
    assert shown["steps"]["rows"] == [
        ["read", "2.00", "2.0", "400"],
        ["minhash", "0.50", "8.0", "1,600"],
        ["all of them", "2.50", "1.6", "320"],
    ]
    parts = shown["parts"]["rows"]
    assert [told[1:] for told in parts] == [["4.00", "1.0", "200"], ["4.00", "1.0", "200"]]  # nothing was selected: no such row


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
