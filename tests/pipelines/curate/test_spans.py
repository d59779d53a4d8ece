"""Hashes of spans depend on their characters alone; repeats are found as a dictionary would find them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate import spans
from pipelines.curate.spans import codes_of, groups, repeats, runs, span_hashes


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab\0é日", max_size=4), min_size=1, max_size=30))
def test_equal_spans_have_equal_hashes_and_others_do_not(words):
    joined = " ".join(words) + " "
    ends = np.cumsum([len(w) + 1 for w in words]) - 1
    starts = ends - [len(w) for w in words]
    hashes = span_hashes(codes_of(joined), starts, ends).tolist()
    by_word = dict(zip(words, hashes, strict=True))
    assert [by_word[w] for w in words] == hashes
    assert len(set(by_word.values())) == len(by_word)


def test_a_hash_does_not_depend_on_the_width_of_the_codes():
    narrow, wide = codes_of("tern sky"), codes_of("tern ský")
    assert narrow.dtype == np.uint8
    assert wide.dtype == np.uint32
    start, end = np.array([0]), np.array([4])
    assert span_hashes(narrow, start, end) == span_hashes(wide, start, end)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=40))
def test_repeats_against_a_plain_count(values):
    again, first, count = repeats(np.array(values, np.uint64))
    assert again.tolist() == [value in values[:place] for place, value in enumerate(values)]
    assert {values[f]: c for f, c in zip(first.tolist(), count.tolist(), strict=True)} == {v: values.count(v) for v in values}


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=40))
def test_runs_cover_exactly_what_is_inside(inside):
    covered = np.zeros(len(inside), bool)
    for start, end in zip(*runs(np.array(inside, bool)), strict=True):
        assert start < end
        covered[start:end] = True
    assert covered.tolist() == inside


def test_groups_keep_order_and_bound_size(monkeypatch):
    monkeypatch.setattr(spans, "_GROUP_CHARS", 10)
    texts = ["aaaa", "bbbb", "c" * 50, "d", "", "e"]
    found = [list(g) for g in groups(texts)]
    assert [t for g in found for t in g] == texts
    assert all(len(g) == 1 or sum(map(len, g)) <= 10 for g in found)
