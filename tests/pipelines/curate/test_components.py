"""The rule of near-duplicates against brute force over all pairs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate.components import components, copies, near_duplicates, partitions, survivor_order
from pipelines.curate.minhash import jaccard

BANDS = st.integers(0, 12).flatmap(lambda n: st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=n, max_size=n))


def sets_like(bands, salt):
    """Sets of shingles whose overlap varies: the multiples of a few small numbers."""
    return [np.array([v for v in range(60) if v % (sum(b) % 3 + 1 + (place + salt) % 2) == 0], np.uint64) for place, b in enumerate(bands)]


def brute_force(bands, sets, threshold):
    kept, dropped = [], []
    for place in range(len(bands)):
        alike = (k for k in kept if any(x == y for x, y in zip(bands[place], bands[k], strict=True)))
        match = next((k for k in alike if jaccard(sets[place], sets[k]) >= threshold), None)
        if match is None:
            kept.append(place)
        else:
            dropped.append((place, match, jaccard(sets[place], sets[match])))
    return dropped


@settings(deadline=None)
@given(BANDS, st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.integers(0, 1))
def test_rule_agrees_with_brute_force_over_the_same_candidates(bands, threshold, salt):
    sets = sets_like(bands, salt)
    matrix = np.array(bands, np.uint64).reshape(-1, 3)
    found = near_duplicates(matrix, sets.__getitem__, threshold)
    assert [(d.place, d.kept, d.similarity) for d in found] == brute_force(bands, sets, threshold)


@settings(deadline=None)
@given(BANDS, st.integers(0, 1))
def test_components_only_partition_the_work(bands, salt):
    sets = sets_like(bands, salt)
    matrix = np.array(bands, np.uint64).reshape(-1, 3)
    whole = {(d.place, d.kept) for d in near_duplicates(matrix, sets.__getitem__, 0.5)}
    component = components(matrix, np.ones(len(bands), bool))
    apart = set()
    for number in set(component[component >= 0].tolist()):
        members = np.flatnonzero(component == number)
        for d in near_duplicates(matrix[members], lambda i, m=members: sets[m[i]], 0.5):
            apart.add((int(members[d.place]), int(members[d.kept])))
    assert apart == whole


@settings(deadline=None)
@given(BANDS, st.data())
def test_components_are_the_connected_ones(bands, data):
    comparable = np.array(data.draw(st.lists(st.booleans(), min_size=len(bands), max_size=len(bands))), bool)
    found = components(np.array(bands, np.uint64).reshape(-1, 3), comparable)
    label = list(range(len(bands)))
    for _ in bands:  # label propagation until nothing can move any more
        for i in range(len(bands)):
            for j in range(len(bands)):
                if comparable[i] and comparable[j] and any(x == y for x, y in zip(bands[i], bands[j], strict=True)):
                    label[i] = label[j] = min(label[i], label[j])
    for i in range(len(bands)):
        alone = label.count(label[i]) == 1 or not comparable[i]
        assert (found[i] == -1) == alone
        for j in range(len(bands)):
            if not alone and comparable[j]:
                assert (found[i] == found[j]) == (label[i] == label[j])


def test_a_chain_does_not_drop_what_only_a_dropped_document_resembles():
    """a ~ b ~ c with a and c apart: b goes for a, and c stays, though one component holds all three."""
    a, b, c = np.arange(0, 100), np.arange(10, 110), np.arange(20, 120)
    sets = [s.astype(np.uint64) for s in (a, b, c)]
    bands = np.zeros((3, 1), np.uint64)
    assert jaccard(sets[0], sets[1]) > 0.8 > jaccard(sets[0], sets[2])
    assert [(d.place, d.kept) for d in near_duplicates(bands, sets.__getitem__, 0.8)] == [(1, 0)]


def test_survivors_are_the_longest_then_the_least_id():
    order = survivor_order(np.array([3, 7, 3, 7]), np.array([b"d", b"c", b"a", b"b"]))
    assert order.tolist() == [3, 1, 2, 0]


def test_copies_point_at_the_first_of_their_digest():
    digests = np.frombuffer(b"".join(bytes([d]) * 16 for d in (1, 2, 1, 3, 2)), "V16")
    assert copies(digests).tolist() == [0, 1, 0, 3, 1]


@settings(deadline=None)
@given(st.lists(st.integers(-1, 5), max_size=30), st.integers(1, 50))
def test_partitions_keep_components_whole(labels, most):
    component = np.unique(labels, return_inverse=True)[1] - (1 if -1 in labels else 0) if labels else np.zeros(0, np.int64)
    found = partitions(component, np.full(len(labels), 10), most)
    assert all((p == -1) == (c == -1) for p, c in zip(found, component, strict=True))
    assert len(set(zip(component.tolist(), found.tolist(), strict=True))) == len(set(component.tolist()))
