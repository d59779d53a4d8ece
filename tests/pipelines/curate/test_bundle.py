"""Places find the way back, and bundles hold every piece once."""

from __future__ import annotations

import doctest

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import pipelines.curate.bundle
from pipelines.curate.bundle import Piece, bundle_of, bundled, piece_of, places, row_of

SIZES = st.lists(st.integers(0, 50), max_size=12)


def pieces(sizes, name):
    return [Piece(f"{name}{n}", f"{name}{n}.signatures", 1, size) for n, size in enumerate(sizes)]


def test_the_worked_examples():
    assert doctest.testmod(pipelines.curate.bundle).failed == 0


@given(st.integers(0, 1 << 22), st.integers(0, 4095), st.integers(0, (1 << 28) - 1))
def test_a_place_says_bundle_piece_and_row(bundle, piece, row):
    place = places(bundle, piece, np.array([row]))
    assert (bundle_of(place)[0], piece_of(place)[0], row_of(place)[0]) == (bundle, piece, row)
    assert place[0] >= 0


@given(SIZES, SIZES, SIZES, st.integers(1, 100))
def test_bundles_hold_every_piece_once_in_order_the_new_first(new, first, second, most):
    given_ = [pieces(sizes, name) for sizes, name in ((new, "n"), (first, "a"), (second, "b"))]
    bundles = bundled(given_[0], given_[1:], most)
    assert [piece for bundle in bundles for piece in bundle.pieces] == [piece for group in given_ for piece in group]
    assert [bundle.number for bundle in bundles] == list(range(len(bundles)))
    assert all(len(bundle.pieces) == 1 or bundle.num_chars <= most for bundle in bundles)
    for bundle in bundles:
        assert bundle.era == {"n": 2, "a": 0, "b": 1}[bundle.pieces[0].text[0]]
        assert bundle.settled == (bundle.era < 2)
        assert bundle.pieces[0].text[1:] == str(bundle.first_piece)
