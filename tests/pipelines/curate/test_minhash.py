"""Shingles against a plain version, signatures against the probability they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate.minhash import band_values, jaccard, shingles

WORDS = st.lists(st.sampled_from(["a", "tern", "flies", "to", "日", "é_1"]), max_size=14)


def plain_shingles(words, n):
    if len(words) < n:
        return [tuple(words)] if words else []
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


@settings(deadline=None)
@given(st.lists(WORDS, max_size=6), st.integers(1, 6))
def test_shingles_are_the_word_ngrams(documents, n):
    found = shingles([" ".join(words) for words in documents], n)
    plain = [plain_shingles(words, n) for words in documents]
    assert [len(f) for f in found] == [len(p) for p in plain]
    hashes = [h for f in found for h in f.tolist()]
    grams = [g for p in plain for g in p]
    assert len(set(zip(hashes, grams, strict=True))) == len(set(grams)) == len(set(hashes))


@settings(deadline=None)
@given(WORDS, WORDS)
def test_jaccard_is_exact(left, right):
    a, b = (set(plain_shingles(words, 3)) for words in (left, right))
    x, y = (np.unique(s) for s in shingles([" ".join(left), " ".join(right)], 3))
    assert jaccard(x, y) == pytest.approx(len(a & b) / len(a | b) if a and b else 0.0)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_bands_do_not_depend_on_company_or_order(left, right):
    alone = shingles([" ".join(left)], 5)[0]
    together = shingles([" ".join(right), " ".join(left)], 5)[1]
    shuffled = np.concatenate((together[::-1], together))
    values = [band_values(s, bands=4, rows=3, seed=1).tolist() for s in (alone, together, shuffled)]
    assert values[0] == values[1] == values[2]


def test_bands_agree_as_often_as_they_should():
    """Of 2,000 pairs with 320 of 400 shingles in common about 1 - (1 - 0.8^8)^14 = 92.4 % share a band (4 sigma: 2.4 %)."""
    random = np.random.default_rng(0)
    found = 0
    for _ in range(2000):
        common, left, right = np.split(random.integers(0, 1 << 63, 400, dtype=np.uint64), [320, 360])
        pair = [band_values(np.concatenate((common, own)), bands=14, rows=8, seed=0) for own in (left, right)]
        found += bool((pair[0] == pair[1]).any())
    assert found / 2000 == pytest.approx(1 - (1 - 0.8**8) ** 14, abs=0.024)
