"""Choosing within a budget: drawn as the weights say, the same in any order, and never more than there is room for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate.resample import best_within, blocks, cover, gumbel, log_ratios, parts_of, uniform


def ids_of(count, salt=0):
    return np.array([f"{salt + i:032x}" for i in range(count)], "S32")


def test_numbers_by_id_are_as_if_drawn():
    drawn = uniform(ids_of(20_000), 3)
    assert 0 < drawn.min() < drawn.max() < 1
    assert np.histogram(drawn, 20, (0, 1))[0] == pytest.approx(1000, abs=150)
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.03
    assert abs(np.corrcoef(drawn, uniform(ids_of(20_000), 4))[0, 1]) < 0.03
    assert uniform(ids_of(20_000)[::-1], 3).tolist() == drawn[::-1].tolist()
    assert gumbel(ids_of(20_000), 3).mean() == pytest.approx(0.5772, abs=0.03)


def test_the_largest_perturbed_weights_are_draws_without_replacement():
    """Of three documents with weights 1, 2 and 5 two are drawn: how often each is left out is known."""
    weights = np.array([1.0, 2.0, 5.0])
    left_out = np.zeros(3)
    for trial in range(4000):
        ids = ids_of(3, 3 * trial)
        left_out[~best_within(np.log(weights) + gumbel(ids, 0), ids, np.ones(3, np.int64), 2)] += 1
    share = weights / weights.sum()
    expected = [sum(share[i] * share[j] / (1 - share[i]) for i, j in itertools.permutations({0, 1, 2} - {out}, 2)) for out in range(3)]
    assert left_out / 4000 == pytest.approx(expected, abs=0.025)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 9)), min_size=1, max_size=30), st.integers(1, 60), st.randoms())
def test_the_best_that_fit_are_taken_whatever_the_order(documents, budget, random):
    keys, sizes, ids = np.array([k for k, _ in documents], float), np.array([s for _, s in documents]), ids_of(len(documents))
    chosen = best_within(keys, ids, sizes, budget)
    assert sizes[chosen].sum() <= budget or chosen.sum() == 1
    if not chosen.all():
        following = max(np.flatnonzero(~chosen), key=lambda i: (keys[i], -i))
        assert keys[chosen].min() >= keys[following]
        assert sizes[chosen].sum() + sizes[following] > budget
    order = random.sample(range(len(documents)), len(documents))
    assert best_within(keys[order], ids[order], sizes[order], budget).tolist() == chosen[order].tolist()


@given(st.lists(st.integers(0, 50), min_size=2, max_size=20), st.lists(st.integers(0, 500), min_size=20, max_size=20))
def test_what_a_target_has_more_of_weighs_more(target, raw):
    target, raw = np.array(target), np.array(raw[: len(target)])
    ratios = log_ratios(target, raw, 10.0)
    assert np.isfinite(ratios).all()
    assert log_ratios(raw * 0, raw, 10.0) == pytest.approx(np.zeros(len(raw)), abs=1e-9)  # a target that says nothing
    assert (ratios[raw == 0] == 0).all()
    assert float((raw * ratios).sum()) <= 1e-9  # Gibbs
    if raw.any():
        seen = np.flatnonzero(raw)
        assert ratios[seen[np.argmax(target[seen] / raw[seen])]] == pytest.approx(ratios[seen].max(), abs=1e-9)


@given(st.integers(0, 10_000), st.lists(st.integers(1, 500), min_size=1, max_size=20))
def test_shares_of_a_budget_add_up(budget, sizes):
    shares = parts_of(budget, sizes)
    assert sum(shares) == budget
    assert all(abs(share - budget * size / sum(sizes)) < 1 for share, size in zip(shares, sizes, strict=True))


def test_blocks_hold_every_document_once_and_depend_on_ids_alone():
    ids = ids_of(1000)
    found = blocks(ids, 300, 1)
    assert [len(block) for block in found] == [250] * 4
    assert sorted(np.concatenate(found).tolist()) == list(range(1000))
    backwards = blocks(ids[::-1], 300, 1)
    assert [[ids[i] for i in block] for block in found] == [[ids[::-1][i] for i in block] for block in backwards]
    assert blocks(ids[:0], 300, 1) == []


def covered(alike, weights, chosen):
    return float((alike[:, chosen].max(axis=1) * weights).sum()) if chosen else 0.0


def plain_greedy(alike, weights, count):
    chosen = []
    for _ in range(count):
        gains = [covered(alike, weights, [*chosen, i]) if i not in chosen else -1 for i in range(len(alike))]
        chosen.append(int(np.argmax(np.round(gains, 5))))
    return chosen


@settings(max_examples=40)
@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 10_000))
def test_covering_is_greedy_and_near_the_best(count, budget, seed):
    rng = np.random.default_rng(seed)
    vectors = np.abs(rng.normal(size=(count, 3))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    weights = rng.uniform(0.5, 2, count)
    budget = min(budget, count)
    chosen = cover(vectors, weights, np.ones(count, np.int64), budget)
    assert len(set(chosen)) == len(chosen) == budget
    alike = np.clip(vectors @ vectors.T, 0, 1)
    assert covered(alike, weights, chosen) == pytest.approx(covered(alike, weights, plain_greedy(alike, weights, budget)), rel=1e-4)
    best = max(covered(alike, weights, list(some)) for some in itertools.combinations(range(count), budget))
    assert covered(alike, weights, chosen) >= (1 - 1 / np.e) * best  # Nemhauser et al. 1978


def test_covering_keeps_to_a_budget_of_sizes():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sizes = rng.integers(1, 40, 60)
    chosen = cover(vectors, np.ones(60), sizes, 200)
    assert 200 - sizes.min() < sizes[chosen].sum() <= 200 or set(chosen) == set(range(60))
    left = [i for i in range(60) if i not in chosen]
    assert all(sizes[i] > 200 - sizes[chosen].sum() for i in left)
    assert cover(vectors[:0], np.ones(0), sizes[:0], 5) == []
