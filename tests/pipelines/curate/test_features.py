"""Hashed words and pairs: the words one would count by hand, the same however texts are grouped."""

from __future__ import annotations

import itertools
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.curate import features as module
from pipelines.curate.features import counts, features, fixed, sketches, totals

BUCKETS = 1 << 32  # no two words share one
TEXTS = st.lists(st.text(max_size=40) | st.text("aA b,.\n日本é1_", max_size=40), max_size=6)


def kind(char):
    if ord(char) >= 0xFFFF or any(a <= ord(char) <= b for a, b in ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))):
        return "ideograph"
    category = unicodedata.category(char)
    return "space" if category[0] in "ZC" else "word" if category[0] in "LNM" or char == "_" else "sign"


def words_of(text):
    found = []
    for name, run in itertools.groupby(text.lower(), kind):
        found += [] if name == "space" else [*run] if name == "ideograph" else ["".join(run)]
    return found


def by_text(texts, **how):
    found = [[] for _ in texts]
    for first, bucket, owner in features(texts, BUCKETS, **how):
        for place, value in zip(owner.tolist(), bucket.tolist(), strict=True):
            found[first + place].append(value)
    return found


@given(TEXTS)
def test_words_are_those_that_one_reads(texts):
    alone = {word: by_text([word], pairs=False)[0] for text in texts for word in words_of(text)}
    assert all(len(hashes) == 1 for hashes in alone.values())
    assert len({h for (h,) in alone.values()}) == len(alone)
    assert by_text(texts, pairs=False) == [[alone[word][0] for word in words_of(text)] for text in texts]


@given(TEXTS)
def test_pairs_are_neighbours_within_a_document(texts):
    for text, found in zip(texts, by_text(texts), strict=True):
        words = words_of(text)
        assert len(found) == max(0, 2 * len(words) - 1)
        assert len(set(found)) == len(set(words)) + len(set(itertools.pairwise(words)))
    (there,), (back,) = by_text(["a b"]), by_text(["b a"])
    assert len(set(there) & set(back)) == 2


@pytest.mark.parametrize("group_chars", [1, 30, 1 << 20])
def test_figures_do_not_depend_on_the_grouping(group_chars, monkeypatch):
    monkeypatch.setattr("pipelines.curate.spans._GROUP_CHARS", group_chars)
    texts = ["The tern flies.", "", "naïve 日本 tern tern", "\x00\x01", "x" * 50, "the THE the"] * 3
    scores = fixed(np.random.default_rng(0).normal(size=64))
    values, number = totals(texts, scores)
    assert [totals([text], scores)[0][0] for text in texts] == values.tolist()
    assert number.tolist() == [max(0, 2 * len(words_of(text)) - 1) for text in texts]
    assert counts(texts, 64).tolist() == sum(counts([text], 64) for text in texts).tolist()
    assert counts(texts, 64).sum() == number.sum()
    np.testing.assert_allclose(values, [sum(scores[b] for b in bags) / module.FIXED_POINT for bags in by_text_in(texts, 64)], atol=1e-12)


def by_text_in(texts, buckets):
    found = [[] for _ in texts]
    for first, bucket, owner in features(texts, buckets):
        for place, value in zip(owner.tolist(), bucket.tolist(), strict=True):
            found[first + place].append(value)
    return found


def test_sketches_are_near_for_texts_that_share_their_telling_words():
    weights = fixed(np.ones(1 << 16))
    texts = [
        "the tern flies over the cold sea to its nest",
        "its nest: the tern flies over the cold sea",
        "import os; os.path.join(a, b)",
        "",
    ]
    vectors = sketches(texts, weights, 256)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 0], abs=1e-6)
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.5 > abs(alike[0, 2]) + 0.2
    np.testing.assert_array_equal(sketches(texts[1:2], weights, 256)[0], vectors[1])


def test_a_sketch_keeps_products_on_average():
    """The count sketch's law: products of two sketches estimate those of the bags, without bias."""
    texts = [" ".join(f"w{i}" for i in range(start, start + 200)) for start in (0, 100)]
    found = [float(np.prod(sketches(texts, fixed(np.ones(1 << k)), 4096), axis=0).sum()) for k in range(17, 24)]
    assert np.mean(found) == pytest.approx(199 / 399, abs=0.05)  # 100 shared words and 99 shared pairs of 200 + 199
