from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.corpus import Cursor, Sequences
from train.mixture import DISCREPANCY, Mixture, pattern_of

weights = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6).map(tuple)


@settings(max_examples=10)
@given(weights)
def test_at_every_place_every_source_has_its_share(weights):
    _, counts = pattern_of(weights)
    shares = np.asarray(weights) / sum(weights)
    assert np.abs(counts - np.arange(len(counts))[:, None] * shares).max() < DISCREPANCY
    assert (counts.sum(axis=1) == np.arange(len(counts))).all()


@settings(max_examples=20)
@given(st.integers(0, 50_000), st.integers(1, 60), st.integers(0, 5))
def test_places_may_be_asked_for_in_any_portions(start: int, count: int, seed: int):
    mixture = Mixture((40, 7, 300), (0.5, 0.2, 0.3), (None, None, np.arange(300)[::-1]))
    places = np.arange(start, start + count)
    whole = mixture.at(places, seed)
    assert whole.tolist() == [int(mixture.at(np.array([place]), seed)[0]) for place in places]
    assert ((whole >= 0) & (whole < 347)).all()


def test_no_sequence_of_a_source_comes_again_before_all_have_come_and_its_own_order_is_kept():
    order = np.random.default_rng(1).permutation(30)
    mixture = Mixture((10, 30), (2.0, 1.0), (None, order))
    taken = mixture.at(np.arange(90), seed=3)
    assert (taken[taken >= 10] - 10).tolist() == order.tolist()
    small = taken[taken < 10].reshape(6, 10)
    assert (np.sort(small, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in small.tolist()}) > 1


@pytest.mark.parametrize(("weights", "said"), [((1.0,), "1 weights for 2 sources"), ((1.0, 0.0), "at least a ten-thousandth")])
def test_weights_that_cannot_be_kept_are_refused(weights, said: str):
    with pytest.raises(ValueError, match=said):
        Mixture((3, 4), weights, (None, None))


def rows(count: int, first: int) -> Sequences:
    tokens = np.arange(first, first + count, dtype=np.uint16)[:, None].repeat(4, axis=1)
    return Sequences([tokens], [np.ones_like(tokens)])


def test_sources_become_one_and_every_worker_count_reads_the_same():
    web, code = rows(20, 100), rows(6, 200)
    code.index = np.arange(6)
    source = Sequences.mixed([web, code], [0.75, 0.25])
    assert len(source) == 26
    cursors = [Cursor(1, 12, 26, step, mixture=source.mixture) for step in range(5)]
    taken = np.concatenate([cursor.indices() for cursor in cursors])
    for world in (1, 2, 3):
        assert np.concatenate([cursor.share(rank, world) for cursor in cursors for rank in range(world)]).tolist() == taken.tolist()
    read = source.batch(taken).input_ids[:, 0].numpy()
    assert abs((read >= 200).sum() - 15) <= DISCREPANCY
    assert read[read >= 200][:6].tolist() == [200, 201, 202, 203, 204, 205]


def test_sources_of_different_lengths_are_refused():
    longer = Sequences([np.zeros((3, 8), np.uint16)], [np.ones((3, 8), np.uint16)])
    with pytest.raises(ValueError, match=r"sequences of \[4, 8\] tokens"):
        Sequences.mixed([rows(3, 0), longer], [1.0, 1.0])
