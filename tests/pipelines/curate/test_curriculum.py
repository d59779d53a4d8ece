"""Orders of training: permutations, never harder than the pacing admits, the same whatever the documents' places."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.curate.curriculum import competence, ranks

DOCUMENTS = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 50)), min_size=1, max_size=40)
PACINGS = st.sampled_from(["sorted", "linear", "root"])
SHARES = st.sampled_from([0.01, 0.1, 0.3, 0.5, 1.0])


def given_documents(documents):
    ids = np.array([f"{i:032x}" for i in range(len(documents))], "S32")
    return np.array([d for d, _ in documents], float), ids, np.array([s for _, s in documents])


@given(DOCUMENTS, PACINGS, SHARES, SHARES, st.randoms())
def test_an_order_is_a_permutation_that_only_the_documents_decide(documents, pacing, start, full, random):
    difficulty, ids, sizes = given_documents(documents)
    how = {"pacing": pacing, "start": start, "full": full, "seed": 3}
    found = ranks(difficulty, ids, sizes, **how)
    assert sorted(found.tolist()) == list(range(len(documents)))
    shuffled = random.sample(range(len(documents)), len(documents))
    assert ranks(difficulty[shuffled], ids[shuffled], sizes[shuffled], **how).tolist() == found[shuffled].tolist()


@given(DOCUMENTS, PACINGS, SHARES, SHARES)
def test_nothing_comes_before_it_is_admitted(documents, pacing, start, full):
    difficulty, ids, sizes = given_documents(documents)
    order = np.argsort(ranks(difficulty, ids, sizes, pacing=pacing, start=start, full=full, seed=0))
    easiest = np.lexsort((ids, difficulty))
    upto = dict(zip(easiest.tolist(), np.cumsum(sizes[easiest]).tolist(), strict=True))
    left, done = easiest.tolist(), 0
    for place in order.tolist():
        admitted = competence(pacing, start, full, done / sizes.sum()) * sizes.sum()
        assert upto[place] <= admitted + 1e-9 or place == left[0]  # where nothing admitted is left, the easiest of the rest
        left.remove(place)
        done += sizes[place]
    if pacing == "sorted":
        assert difficulty[order].tolist() == sorted(difficulty.tolist())


@given(PACINGS, SHARES, SHARES, st.floats(0, 1), st.floats(0, 1))
def test_competence_grows_to_everything_and_never_falls_behind(pacing, start, full, one, other):
    early, late = sorted((one, other))
    assert competence(pacing, start, full, early) <= competence(pacing, start, full, late) <= 1
    assert competence(pacing, start, full, late) >= late - 1e-12
    assert competence(pacing, start, full, 1.0) == 1.0


def test_the_root_is_ahead_of_the_line():
    assert competence("root", 0.1, 0.5, 0.1) > competence("linear", 0.1, 0.5, 0.1) > competence("sorted", 0.1, 0.5, 0.1)
    assert competence("linear", 0.1, 0.5, 0.0) == pytest.approx(0.1)


@pytest.mark.parametrize(("start", "full", "low", "high"), [(1.0, 1.0, -0.1, 0.1), (0.1, 0.5, 0.15, 0.4), (0.01, 1.0, 0.9, 1.0)])
def test_how_strictly_difficulty_orders_is_the_pacings(start, full, low, high):
    """Everything admitted at once is a random order; the slower it is admitted, the more the order is that of difficulty."""
    difficulty, ids, sizes = given_documents([(i, 1) for i in range(2000)])
    found = ranks(difficulty, ids, sizes, pacing="linear", start=start, full=full, seed=0)
    assert low < np.corrcoef(found, difficulty)[0, 1] < high
