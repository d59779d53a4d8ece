"""The forms of a law: gradients, published values, limits."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.plan.forms import FORMS, KAPLAN, as_law
from train.plan.laws import CHINCHILLA, MUENNIGHOFF
from train.plan.runs import Runs


def runs_of(parameters, tokens, unique=None):
    n, d = np.atleast_1d(np.float64(parameters)), np.atleast_1d(np.float64(tokens))
    return Runs(n, d, np.full(len(n), 3.0), None if unique is None else np.atleast_1d(np.float64(unique)))


def some_runs():
    pick = np.random.default_rng(0)
    tokens = 10 ** pick.uniform(8, 11, 7)
    return runs_of(10 ** pick.uniform(6, 10, 7), tokens, tokens / pick.uniform(1, 20, 7))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_gradient_is_that_of_the_loss(form):
    runs = some_runs()
    for theta in form.starts(runs)[::17]:
        _, gradient = form.evaluate(theta, runs)
        for i, unit in enumerate(np.eye(len(theta))):
            step = 1e-5 * unit
            slope = (form.log_loss(theta + step, runs) - form.log_loss(theta - step, runs)) / 2e-5
            np.testing.assert_allclose(gradient[:, i], slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_starts_are_finite_and_named_like_the_coefficients(form):
    starts = form.starts(some_runs())
    assert np.isfinite(starts).all()
    assert len(form.table(starts[0])) == len(form.coefficients) == starts.shape[1]


def theta_of(law):
    return np.array([math.log(law.A), math.log(law.B), math.log(law.E), law.alpha, law.beta])


@given(st.floats(1e5, 1e12), st.floats(1e6, 1e13))
def test_the_additive_form_is_the_planners_law(parameters, tokens):
    found = np.exp(FORMS["chinchilla"].log_loss(theta_of(CHINCHILLA), runs_of(parameters, tokens)))
    assert found[0] == pytest.approx(CHINCHILLA.loss(parameters, tokens), rel=1e-12)


@pytest.mark.parametrize(("parameters", "tokens", "loss"), [(6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867)])
def test_the_data_constrained_form_has_its_published_values(parameters, tokens, loss):
    theta = np.array([6.255414, 7.3049974, 0.6254804, 0.3526596, math.log(15.387756), math.log(5.309743)])
    runs = runs_of(parameters, tokens, 25e9)
    assert np.exp(FORMS["data_constrained"].log_loss(theta, runs))[0] == pytest.approx(loss, abs=1e-9)
    law, repetition = as_law(FORMS["data_constrained"], theta)
    assert law.repeated_loss(parameters, tokens, 25e9, repetition) == pytest.approx(loss, abs=1e-9)
    assert law.alpha == law.beta == MUENNIGHOFF.alpha


def test_kaplans_published_power_law_of_data():
    critical, exponent = KAPLAN["tokens"]
    found = np.exp(FORMS["kaplan_tokens"].log_loss(np.log([critical, exponent]), runs_of(1e9, 22e9)))
    assert found[0] == pytest.approx((5.4e13 / 22e9) ** 0.095)


def test_kaplans_joint_law_becomes_its_parts_where_the_other_does_not_limit():
    theta = np.log([8.8e13, 5.4e13, 0.076, 0.095])
    joint = FORMS["kaplan"]
    assert np.exp(joint.log_loss(theta, runs_of(1e8, 1e30)))[0] == pytest.approx((8.8e13 / 1e8) ** 0.076, rel=1e-6)
    assert np.exp(joint.log_loss(theta, runs_of(1e30, 1e9)))[0] == pytest.approx((5.4e13 / 1e9) ** 0.095, rel=1e-6)


def test_a_form_without_irreducible_loss_is_no_planners_law():
    with pytest.raises(AssertionError, match="irreducible"):
        as_law(FORMS["kaplan"], np.log([8.8e13, 5.4e13, 0.076, 0.095]))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_coefficients_that_ran_away_are_still_numbers(form):
    count = form.starts(some_runs()).shape[1]
    for far in (-5000.0, 5000.0):
        assert np.isfinite(list(form.table(np.full(count, far)).values())).all()
