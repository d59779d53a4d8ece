"""The rule of duplicates against brute force over all pairs."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pipelines.curate.components
from pipelines.curate.components import (
    Candidates,
    bucket_keys,
    components,
    copies,
    duplicates_among,
    star_edges,
    survivor_order,
)
from pipelines.curate.minhash import jaccard

BANDS = st.integers(0, 12).flatmap(lambda n: st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=n, max_size=n))
UNLIMITED = 1 << 30


def sets_like(bands, salt):
    """Sets of shingles whose overlap varies: the multiples of a few small numbers; every seventh document has none."""
    sets = [[v for v in range(60) if v % (sum(b) % 3 + 1 + (place + salt) % 2) == 0] for place, b in enumerate(bands)]
    return [np.array([] if place % 7 == 6 else s, np.uint64) for place, s in enumerate(sets)]


def digests_of(numbers):
    return np.frombuffer(b"".join(int(n).to_bytes(16, "little") for n in numbers), "V16")


def candidates(bands, sets, digests=None, num_settled=0):
    return Candidates(
        bands=np.array(bands, np.uint64).reshape(len(bands), -1) if bands else np.zeros((0, 3), np.uint64),
        digest=digests_of(range(len(bands)) if digests is None else digests),
        num_grams=np.array([s.size for s in sets], np.int64),
        settled=np.arange(len(bands)) < num_settled,
    )


def brute_force(bands, sets, threshold, digests=None, num_settled=0, limit=UNLIMITED):
    """Document by document, the rule as it is written: (place, kept, similarity) of the dropped."""
    digests = list(range(len(bands))) if digests is None else digests
    kept, listed, dropped = [], {}, []
    for place in range(len(bands)):
        buckets = list(enumerate(bands[place])) if sets[place].size else []
        rivals = sorted({k for b in buckets for k in listed.get(b, [])})
        equal = [k for k in kept if digests[k] == digests[place]]
        alike = [k for k in rivals if jaccard(sets[place], sets[k]) >= threshold]
        match = next(iter(equal + alike), None)
        if match is not None and place >= num_settled:
            same = digests[match] == digests[place]
            dropped.append((place, match, 1.0 if same else jaccard(sets[place], sets[match])))
            continue
        kept.append(place)
        for bucket in buckets:
            if len(listed.setdefault(bucket, [])) < limit:
                listed[bucket].append(place)
    return dropped


def told(kept, similarity):
    """(place, kept, similarity) of the dropped."""
    return [(n, k, s) for n, (k, s) in enumerate(zip(kept.tolist(), similarity.tolist(), strict=True)) if n != k]


def test_the_worked_examples():
    assert doctest.testmod(pipelines.curate.components).failed == 0


@settings(deadline=None)
@given(BANDS, st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.integers(0, 1), st.integers(0, 5), st.sampled_from([1, 2, UNLIMITED]))
def test_rule_agrees_with_brute_force_over_the_same_candidates(bands, threshold, salt, num_settled, limit):
    sets = sets_like(bands, salt)
    found = duplicates_among(candidates(bands, sets, num_settled=num_settled), sets.__getitem__, threshold, limit)
    assert told(*found) == brute_force(bands, sets, threshold, None, num_settled, limit)


@settings(deadline=None)
@given(BANDS.filter(len), st.data(), st.sampled_from([1, 2, UNLIMITED]))
def test_copies_share_the_fate_of_the_first_even_where_buckets_are_full(originals, data, limit):
    """A copy has the sets and bands of its original; those that stay whatever else there is may be copies, too."""
    which = data.draw(st.lists(st.integers(0, len(originals) - 1), min_size=1, max_size=14))
    num_settled = data.draw(st.integers(0, 3))
    bands, every = [originals[w] for w in which], sets_like(originals, 0)
    sets = [every[w] for w in which]
    found = duplicates_among(candidates(bands, sets, which, num_settled), sets.__getitem__, 0.5, limit)
    assert told(*found) == brute_force(bands, sets, 0.5, which, num_settled, limit)
    assert all(place >= num_settled for place, _, _ in told(*found))


@settings(deadline=None)
@given(BANDS, st.integers(0, 1), st.sampled_from([1, UNLIMITED]))
def test_components_only_partition_the_work(bands, salt, limit):
    sets = sets_like(bands, salt)
    documents = candidates(bands, sets)
    whole = {(place, kept) for place, kept, _ in told(*duplicates_among(documents, sets.__getitem__, 0.5, limit))}
    apart = set()
    place, component = components(*edges_of(documents))
    for root in set(component.tolist()):
        members = place[component == root]
        part = Candidates(*(getattr(documents, name)[members] for name in ("bands", "digest", "num_grams", "settled")))
        for dropped, kept, _ in told(*duplicates_among(part, lambda i, m=members: sets[m[i]], 0.5, limit)):
            apart.add((int(members[dropped]), int(members[kept])))
    assert apart == whole


def edges_of(documents, newcomer=None):
    keys = bucket_keys(documents.bands, documents.digest, documents.num_grams > 0)
    places = np.arange(keys.shape[0])
    newcomer = np.ones(places.size, bool) if newcomer is None else newcomer
    return star_edges(keys.ravel(), np.repeat(places, keys.shape[1]), np.repeat(newcomer, keys.shape[1]))


@settings(deadline=None)
@given(BANDS, st.data())
def test_components_are_the_connected_ones(bands, data):
    """Label propagation until nothing can move any more; a bucket of documents that all stay connects nobody."""
    count = len(bands)
    newcomer = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    documents = candidates(bands, sets_like(bands, 0), digests=[place // 3 for place in range(count)])
    place, component = components(*edges_of(documents, newcomer))
    found = dict(zip(place.tolist(), component.tolist(), strict=True))
    buckets = {}
    for i, own in enumerate(bands):
        for bucket in enumerate(own) if documents.num_grams[i] else [("digest", i // 3)]:
            buckets.setdefault(bucket, []).append(i)
    joined = [members for members in buckets.values() if len(members) > 1 and newcomer[members].any()]
    label = list(range(count))
    for _ in bands:
        for members in joined:
            least = min(label[i] for i in members)
            for i in members:
                label[i] = least
    inside = {i for members in joined for i in members}
    assert found == {i: label[i] for i in inside}


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=40))
def test_a_bucket_of_m_documents_has_m_minus_1_edges(values):
    keys, places = np.array(values, np.uint64), np.random.default_rng(0).permutation(len(values)).astype(np.int64)
    greater, least = star_edges(keys, places, np.ones(len(values), bool))
    assert greater.size == len(values) - len(set(values))
    centres = {value: min(places[keys == value].tolist()) for value in values}
    assert set(zip(greater.tolist(), least.tolist(), strict=True)) == {
        (p, centres[v]) for p, v in zip(places.tolist(), values, strict=True) if p != centres[v]
    }


def test_a_giant_bucket_is_compared_with_its_first_kept_only():
    """600 documents of one bucket that are not alike: each newcomer is compared with the limit's number of them, no more."""
    asked = []

    def grams(place):
        asked.append(place)
        return np.array([place * 2, place * 2 + 1], np.uint64)

    documents = candidates([[0]] * 600, [np.zeros(2)] * 600)
    assert told(*duplicates_among(documents, grams, 0.8, 16)) == []
    assert len(asked) <= 600 * 17
    assert {a for a in asked[-17:] if a != 599} == set(range(16))


@example(55, 1)
@given(st.integers(1, 99), st.integers(1, 40))
def test_a_similarity_of_just_the_threshold_is_enough(percent, scale):
    """A part of a document that is 55 % of it, say: the look at the sizes rounds as the similarity does."""
    sets = [np.arange(size * scale, dtype=np.uint64) for size in (100, percent)]
    found = duplicates_among(candidates([[0]] * 2, sets), sets.__getitem__, percent / 100, UNLIMITED)
    assert told(*found) == [(1, 0, percent / 100)]


def test_a_chain_does_not_drop_what_only_a_dropped_document_resembles():
    """a ~ b ~ c with a and c apart: b goes for a, and c stays, though one component holds all three."""
    a, b, c = np.arange(0, 100), np.arange(10, 110), np.arange(20, 120)
    sets = [s.astype(np.uint64) for s in (a, b, c)]
    assert jaccard(sets[0], sets[1]) > 0.8 > jaccard(sets[0], sets[2])
    found = duplicates_among(candidates([[0]] * 3, sets), sets.__getitem__, 0.8, UNLIMITED)
    assert [(place, kept) for place, kept, _ in told(*found)] == [(1, 0)]


def test_survivors_are_the_old_then_the_first_to_claim_then_the_least_id():
    order = survivor_order(np.array([1, 1, 1, 1, 0]), np.array([-3.0, -7, -3, -7, 9]), np.array([b"d", b"c", b"a", b"b", b"z"]))
    assert order.tolist() == [4, 3, 1, 2, 0]


def test_copies_point_at_the_first_of_their_digest():
    assert copies(digests_of([1, 2, 1, 3, 2])).tolist() == [0, 1, 0, 3, 1]


@pytest.mark.parametrize("has_words", [True, False])
def test_keys_are_shared_in_the_same_band_only(has_words):
    bands = np.array([[1, 2], [2, 1], [1, 9]], np.uint64)
    keys = bucket_keys(bands, digests_of([5, 5, 6]), np.array([has_words] * 3))
    if has_words:
        assert keys[0, 0] == keys[2, 0]
        assert len(set(keys.ravel().tolist())) == 5
    else:
        assert (keys[0] == keys[1]).all()
        assert not np.isin(keys[2], keys[:2]).any()
