"""A quality classifier trained on the spot from labelled examples: logistic regression over words and over measures of style.

Promise: the classifier is a function of its examples, and a text's score of the classifier and the text: sums over words are
of whole multiples of 2^-20, so they are exact in whatever company the text is judged. Price: training half a second for a
thousand documents (L-BFGS over the words that stand in two of them at least); judging is a table look-up for each word and
pair, and the measures of the web rules. What it learns is the examples' notion of good and no other: cross-validate it.
After: hashed linear classifiers as quality filters, GPT-3's (arXiv 2005.14165, A) and DCLM's (arXiv 2406.11794, 4.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, sparse

from pipelines.curate.features import features, fixed, totals
from pipelines.curate.measure import measure_prose
from pipelines.curate.spans import Ints

__all__ = ["Classifier", "cross_validated", "roc_auc", "train"]

Floats = npt.NDArray[np.float64]

_BUCKETS = 1 << 18
_WORDS_SCALE = 20.0  # a text's words have shares that add up to 1, its measures a deviation of 1 each: this weighs them
_STYLE_SCALE = 0.1
_PENALTY = 1e-3
_FOLDS = 10
_MOST_DEVIATIONS = 3.0
_LOGARITHMIC = {"num_words", "curly_brackets", "stop_words", "sentences", "terminated_sentences"}


@dataclass(frozen=True, slots=True)
class Classifier:
    """P(good) = 1 / (1 + exp(-(bias + words + style)))."""

    words: Ints
    """What a word or pair adds, times its share of the text's [buckets], as `features.fixed`."""
    style: Floats
    """What one standard deviation of each measure adds [measures]."""
    centre: Floats
    """The examples' means [measures]."""
    spread: Floats
    """The examples' standard deviations [measures]."""
    bias: float

    def scores(self, texts: Sequence[str]) -> Floats:
        """The probability that each text is good, to six decimals."""
        if not texts:
            return np.zeros(0)
        sums, number = totals(texts, self.words)
        found = self.bias + sums / np.maximum(number, 1)
        for place, values in enumerate(_style(texts)):  # one after the other: a matrix product may round by its shape
            found = found + _standard(values, self.centre[place], self.spread[place]) * self.style[place]
        probability: Floats = np.round(1.0 / (1.0 + np.exp(-found)), 6)
        return probability


def train(texts: Sequence[str], labels: Sequence[int]) -> Classifier:
    """A classifier of the examples; `labels`: 1 good, 0 bad.

    >>> model = train(["a fine long tale of the sea"] * 9 + ["buy now cheap"] * 9, [1] * 9 + [0] * 9)
    >>> good, bad = model.scores(["a long tale", "buy cheap"])
    >>> bool(good > 0.5 > bad)
    True
    """
    return _fit(_shares(texts), np.stack(_style(texts)), np.asarray(labels, np.float64))


def cross_validated(texts: Sequence[str], labels: Sequence[int], seed: int, repeats: int = 1) -> tuple[Floats, float, float]:
    """Scores of the examples, each by classifiers that were not shown it, mean over the repeats; their ROC AUC and its error."""
    shares, style, wanted = _shares(texts), np.stack(_style(texts)), np.asarray(labels, np.float64)
    scores = np.zeros((repeats, len(texts)))
    for repeat in range(repeats):
        order = np.random.default_rng((seed, repeat)).permutation(len(texts))
        fold = np.empty(len(texts), np.int64)
        fold[order[np.argsort(wanted[order], kind="stable")]] = np.arange(len(texts)) % _FOLDS  # as many good ones in each
        for number in range(_FOLDS):
            held, rest = fold == number, fold != number
            model = _fit(shares[rest], style[:, rest], wanted[rest])
            scores[repeat, held] = model.scores([text for text, out in zip(texts, held, strict=True) if out])
    area = float(np.mean([roc_auc(each, labels)[0] for each in scores]))
    return scores.mean(axis=0), area, roc_auc(scores.mean(axis=0), labels)[1]


def roc_auc(scores: Floats, labels: Sequence[int]) -> tuple[float, float]:
    """The probability that a good text scores above a bad one (half for ties), and its standard error (DeLong et al. 1988).

    >>> roc_auc(np.array([0.1, 0.4, 0.35, 0.8]), [0, 0, 1, 1])[0]
    0.75
    """
    is_good = np.asarray(labels) == 1
    good, bad = np.sort(scores[is_good]), np.sort(scores[~is_good])
    above = (np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")) / (2 * bad.size)
    below = 1.0 - (np.searchsorted(good, bad, "left") + np.searchsorted(good, bad, "right")) / (2 * good.size)
    variance = above.var(ddof=1) / good.size + below.var(ddof=1) / bad.size
    return float(above.mean()), float(np.sqrt(variance))


def _shares(texts: Sequence[str]) -> sparse.csr_matrix:
    """Each text's words and pairs [texts, buckets], as shares of all of its."""
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first, bucket, owner in features(texts, _BUCKETS):
        rows.append(owner + first)
        columns.append(bucket)
    row = np.concatenate(rows)
    weight = 1.0 / np.maximum(np.bincount(row, minlength=len(texts)), 1)
    found = sparse.csr_matrix((weight[row], (row, np.concatenate(columns))), shape=(len(texts), _BUCKETS))
    found.sum_duplicates()
    return found


def _style(texts: Sequence[str]) -> list[Floats]:
    """The measures of the web rules, the long-tailed ones in logarithms and the shares as square roots."""
    return [np.log1p(values) if name in _LOGARITHMIC else np.sqrt(values) for name, values in sorted(measure_prose(texts).items())]


def _standard(values: Floats, centre: float, spread: float) -> Floats:
    found: Floats = np.clip((values - centre) / spread, -_MOST_DEVIATIONS, _MOST_DEVIATIONS)
    return found


def _fit(shares: sparse.csr_matrix, style: Floats, labels: Floats) -> Classifier:
    """Minimise the mean log loss + penalty / 2 * |weights|^2, over the words that stand in two texts at least."""
    centre, spread = style.mean(axis=1), np.maximum(style.std(axis=1), 1e-9)
    own = np.stack([_standard(*each) for each in zip(style, centre, spread, strict=True)], axis=1)
    told = np.flatnonzero(np.bincount(shares.indices, minlength=shares.shape[1]) >= 2)
    inputs = sparse.hstack([shares[:, told] * _WORDS_SCALE, sparse.csr_matrix(own * _STYLE_SCALE)]).tocsr()

    def loss(weights: Floats) -> tuple[float, Floats]:
        logits = inputs @ weights[:-1] + weights[-1]
        slope = (1.0 / (1.0 + np.exp(-logits)) - labels) / labels.size
        value = np.logaddexp(0.0, np.where(labels > 0, -logits, logits)).mean() + _PENALTY / 2 * np.square(weights[:-1]).sum()
        return float(value), np.append(inputs.T @ slope + _PENALTY * weights[:-1], slope.sum())

    weights = optimize.minimize(loss, np.zeros(inputs.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    words = np.zeros(shares.shape[1])
    words[told] = weights[: told.size] * _WORDS_SCALE
    style_weights = np.round(weights[told.size : -1] * _STYLE_SCALE, 6)  # as coarse as the words': other machines' last bits do not count
    return Classifier(fixed(words), style_weights, centre, spread, round(float(weights[-1]), 6))
