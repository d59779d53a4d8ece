"""Laws of packing: every token once, nothing too long, segments consistent, order kept by buckets, little padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.pack import best_fit, fill, mean_places, pack, split

CAPACITY = 16
DOCUMENTS = st.lists(st.integers(1, 50), max_size=60).map(lambda lengths: np.array(lengths, np.int64))


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 8))
def test_every_token_exactly_once_and_in_its_segment(num_tokens, bucket_sequences):
    tokens = np.arange(1, num_tokens.sum() + 1).astype(np.uint16)
    pieces = split(num_tokens, CAPACITY)
    packed = pack(pieces.length, CAPACITY, bucket_sequences)
    sequences, segments = fill(tokens, pieces.length, packed, CAPACITY, pad=0)
    assert sequences.shape == segments.shape == (packed.num_sequences, CAPACITY)
    assert sorted(sequences[segments > 0].tolist()) == tokens.tolist()
    assert (sequences[segments == 0] == 0).all()
    found = [sequences[s][segments[s] == n] for s, n in zip(packed.sequence, packed.segment, strict=True)]
    assert [len(f) for f in found] == pieces.length.tolist()
    assert np.concatenate([*found, []]).tolist() == tokens.tolist()


@settings(deadline=None)
@given(DOCUMENTS)
def test_segments_are_numbered_left_to_right_without_gaps(num_tokens):
    pieces = split(num_tokens, CAPACITY)
    packed = pack(pieces.length, CAPACITY, 4)
    _, segments = fill(np.ones(num_tokens.sum(), np.uint16), pieces.length, packed, CAPACITY, pad=0)
    for row in segments.tolist():
        used = [s for s in row if s]
        assert row == used + [0] * (CAPACITY - len(used))
        assert sorted(set(used)) == list(range(1, max(used) + 1))
        assert used == sorted(used)


@settings(deadline=None)
@given(DOCUMENTS)
def test_parts_are_cut_only_where_a_document_is_too_long(num_tokens):
    pieces = split(num_tokens, CAPACITY)
    for place, tokens in enumerate(num_tokens.tolist()):
        own = pieces.length[pieces.document == place].tolist()
        assert sum(own) == tokens
        assert all(length == CAPACITY for length in own[:-1])
        assert pieces.part[pieces.document == place].tolist() == list(range(len(own)))


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 5))
def test_order_survives_by_buckets(num_tokens, bucket_sequences):
    lengths = split(num_tokens, CAPACITY).length
    packed = pack(lengths, CAPACITY, bucket_sequences)
    bucket = (np.cumsum(lengths) - lengths) // (CAPACITY * bucket_sequences)
    for number in set(bucket.tolist()):
        inside = packed.sequence[bucket == number]
        assert (packed.sequence[bucket < number] < inside.min()).all()


@settings(deadline=None)
@given(st.lists(st.integers(1, CAPACITY), min_size=1, max_size=200))
def test_best_fit_leaves_no_two_sequences_that_fit_into_one(lengths):
    sequence, offset = best_fit(lengths, CAPACITY)
    assert all(o + n <= CAPACITY for o, n in zip(offset, lengths, strict=True))
    filled = np.bincount(np.asarray(sequence), weights=lengths)
    assert len(filled) < 2 or sum(sorted(filled)[:2]) > CAPACITY  # else the later of the two need not have been opened


def test_documents_of_everyday_lengths_pad_little():
    lengths = np.maximum(np.random.default_rng(0).lognormal(5, 1.2, 20_000).astype(np.int64), 1)
    pieces = split(lengths, 512)
    packed = pack(pieces.length, 512, 1024)
    assert 1 - lengths.sum() / (packed.num_sequences * 512) < 0.01


def test_nothing_packs_into_nothing():
    packed = pack(np.zeros(0, np.int64), 8, 1)
    assert packed.num_sequences == 0


@given(DOCUMENTS.filter(len), st.integers(1, 8))
def test_a_sequences_place_is_the_mean_of_its_tokens(num_tokens, bucket_sequences):
    pieces = split(num_tokens, CAPACITY)
    packed = pack(pieces.length, CAPACITY, bucket_sequences)
    held = [[] for _ in range(packed.num_sequences)]
    for sequence, length, document in zip(packed.sequence, pieces.length, pieces.document, strict=True):
        held[sequence] += [document * 10] * length
    np.testing.assert_allclose(mean_places(packed, pieces.length, pieces.document * 10), [np.mean(each) for each in held])
