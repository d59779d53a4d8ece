"""The classifier learns what its examples say, says the same in any company, and is judged by cross-validation."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate.classify import cross_validated, roc_auc, train
from pipelines.curate.normalize import clean

GOOD = "the of and tern sea ice wind flies north south year egg fish nest wing light storm coast island winter".split()  # noqa: SIM905
BAD = "buy cheap click now free offer best price deal win sale shop order online today discount the of".split()  # noqa: SIM905


def text_of(words, seed):
    return " ".join(random.Random(f"{words[0]} {seed}").choices(words, k=80)) + "."


TEXTS = [text_of(words, seed) for seed in range(40) for words in (GOOD, BAD)]
LABELS = [1, 0] * 40
MODEL = train(TEXTS, LABELS)


def test_it_tells_what_its_examples_tell_apart():
    good, bad = MODEL.scores([text_of(GOOD, "new"), text_of(BAD, "new")])
    assert good > 0.8 > 0.2 > bad
    assert MODEL.scores([]).tolist() == []


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([*GOOD, *BAD, "\n", "日本。", "…"]), max_size=30).map(" ".join), min_size=1, max_size=6))
def test_a_score_does_not_depend_on_the_company(texts):
    assert MODEL.scores(texts).tolist() == [MODEL.scores([text])[0] for text in texts]


def test_training_is_a_function_of_the_examples():
    again = train(TEXTS, LABELS)
    assert (again.words == MODEL.words).all()
    assert (again.style == MODEL.style).all()
    turned = train(TEXTS, [1 - label for label in LABELS])
    assert turned.scores(TEXTS) == pytest.approx(1 - MODEL.scores(TEXTS), abs=1e-3)


def test_cross_validation_finds_nothing_where_labels_mean_nothing():
    alike = [text_of(GOOD, seed) for seed in range(80)]
    labels = [np.random.default_rng(seed).permutation(LABELS).tolist() for seed in range(4)]
    assert 0.35 < np.mean([cross_validated(alike, given, seed=0)[1] for given in labels]) < 0.65
    assert roc_auc(train(alike, labels[0]).scores(alike), labels[0])[0] > 0.9  # it could have learnt them by heart


def test_cross_validation_finds_what_labels_mean():
    scores, area, _ = cross_validated(TEXTS, LABELS, seed=0)
    assert area > 0.95
    assert scores.shape == (80,)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2).filter(
        lambda rows: sum(g for _, g in rows) >= 2 <= sum(not g for _, g in rows)
    )
)
def test_the_area_is_the_share_of_pairs_in_the_right_order(rows):
    scores, labels = np.array([s for s, _ in rows], float), [int(good) for _, good in rows]
    pairs = [(a > b) + (a == b) / 2 for a, x in zip(scores, labels, strict=True) for b, y in zip(scores, labels, strict=True) if x > y]
    assert roc_auc(scores, labels)[0] == pytest.approx(np.mean(pairs))


def test_the_error_is_that_of_repeated_samples():
    draw = np.random.default_rng(0)
    labels = [1] * 60 + [0] * 40
    found = [roc_auc(draw.normal(size=100) + np.array(labels), labels) for _ in range(200)]
    assert np.std([area for area, _ in found]) == pytest.approx(np.mean([error for _, error in found]), rel=0.2)


def test_on_peoples_labels_it_is_better_than_chance(data_dir):
    rows = [json.loads(line) for line in (data_dir / "docs" / "quality-labels.jsonl").open()]
    _, area, error = cross_validated([clean(row["text"]) for row in rows], [row["label"] for row in rows], seed=0)
    assert area > 0.7
    assert error < 0.03
