"""Fits: published coefficients from published points, and known laws from runs made of them."""

import numpy as np
import pytest

from train.plan.fit import bootstrap, fit
from train.plan.forms import FORMS
from train.plan.laws import CHINCHILLA
from train.plan.runs import Runs, read_runs


def made(count, noise, seed=0):
    pick = np.random.default_rng(seed)
    n = 10 ** pick.uniform(6.5, 9.5, count)
    d = n * 10 ** pick.uniform(0.3, 2.3, count)
    loss = np.array([CHINCHILLA.loss(*pair) for pair in zip(n, d, strict=True)])
    return Runs(n, d, loss * np.exp(noise * pick.standard_normal(count)), lines=tuple(range(2, count + 2)))


def test_chinchillas_points_give_the_refitted_law(data_dir):
    found = fit(FORMS["chinchilla"], read_runs(str(data_dir / "laws" / "chinchilla-points.csv")))
    law = found.form.table(found.theta)
    assert law["A"] == pytest.approx(480, abs=4)
    assert law["B"] == pytest.approx(2114, abs=35)
    assert law["E"] == pytest.approx(1.817, abs=0.002)
    assert (law["alpha"], law["beta"]) == (pytest.approx(0.347, abs=0.001), pytest.approx(0.3665, abs=0.001))
    assert found.outliers.tolist() == [0, 1, 2, 3, 4], "five points of the smallest compute were read off the picture wrongly"


def test_a_law_without_noise_is_found_again():
    found = fit(FORMS["chinchilla"], made(40, 0.0))
    law = found.form.table(found.theta)
    for name in ("E", "alpha", "beta"):
        assert law[name] == pytest.approx(getattr(CHINCHILLA, name), rel=0.01)
    assert np.abs(found.residuals).max() < 1e-3


def test_a_wrong_record_is_named_and_changes_nothing():
    runs = made(40, 0.002)
    clean = fit(FORMS["chinchilla"], runs)
    loss = runs.loss.copy()
    loss[[7, 23]] *= (1.4, 0.7)
    spoilt = fit(FORMS["chinchilla"], Runs(runs.parameters, runs.tokens, loss, lines=runs.lines))
    assert spoilt.outliers.tolist() == [7, 23]
    assert spoilt.runs.lines == tuple(line for line in runs.lines if line not in (9, 25))
    everywhere = Runs(*(np.geomspace(1e7, 1e9, 9), np.geomspace(1e8, 1e11, 9), np.ones(9)))
    np.testing.assert_allclose(spoilt.loss(everywhere), clean.loss(everywhere), rtol=5e-3)


def test_resamples_scatter_around_the_fit_as_the_noise_does():
    spreads = []
    for noise in (0.001, 0.01):
        found = fit(FORMS["one_exponent"], made(60, noise))
        draws = bootstrap(found, 40, seed=1)
        np.testing.assert_array_equal(draws, bootstrap(found, 40, seed=1))
        values = np.array([found.form.values(theta) for theta in draws])
        spreads.append(values[:, 3].std())
        assert np.quantile(values[:, 2], 0.02) < found.form.table(found.theta)["E"] < np.quantile(values[:, 2], 0.98)
    assert spreads[0] < 0.5 * spreads[1]
