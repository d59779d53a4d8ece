"""Extrapolation: hidden runs stay hidden, intervals hold what they say, the right law is chosen."""

import doctest

import numpy as np
import pytest

from tests.train.plan.test_fit import made
from train.plan import extrapolate as extrapolate_module
from train.plan.extrapolate import Predictor, extrapolation, hidden_runs, predictor, ranked
from train.plan.fit import Fitted, fit
from train.plan.forms import FORMS
from train.plan.runs import Runs, read_runs

PLAIN = [form for name, form in FORMS.items() if name != "data_constrained"]


def test_doctests():
    assert doctest.testmod(extrapolate_module).failed == 0


def test_the_largest_of_the_given_table_are_predicted_within_two_percent(data_dir):
    runs = read_runs(str(data_dir / "laws" / "chinchilla-points.csv"))
    found = extrapolation(PLAIN, runs, draws=60)
    told = found.table()
    assert told["hidden_above_share_of_compute"] == 0.1
    assert told["runs_seen"] + told["runs_hidden"] == len(runs)
    assert told["error"] < 0.012
    assert told["within_2_percent"] > 0.9
    assert told["interval_covers"] >= 0.8


def test_what_is_hidden_is_never_seen():
    runs = made(60, 0.004)
    _, hidden = hidden_runs(runs)
    assert runs.flops[hidden].min() > 0.1 * runs.flops.max() >= runs.flops[~hidden].max()
    spoilt = Runs(runs.parameters, runs.tokens, np.where(hidden, 1.5 * runs.loss, runs.loss))
    one, other = (extrapolation(PLAIN, each, draws=20) for each in (runs, spoilt))
    assert one.law == other.law
    for name in one.errors:
        np.testing.assert_allclose(other.errors[name], (1 + one.errors[name]) / 1.5 - 1, rtol=1e-9)
    np.testing.assert_array_equal(one.low, other.low)
    assert other.covered == 0 < one.covered


def test_a_narrow_table_hides_a_smaller_share_of_its_compute():
    share, hidden = hidden_runs(made(60, 0.0))
    assert share == 0.1
    narrow = Runs(np.full(9, 1e8), np.geomspace(1e9, 4e9, 9), np.linspace(3.4, 3.0, 9))
    share, hidden = hidden_runs(narrow)
    assert share == 0.75
    assert (~hidden).sum() == 7


def test_too_few_to_hide_any_give_a_law_all_the_same():
    runs = Runs(np.full(6, 1e8), np.geomspace(1e9, 1.01e9, 6), np.linspace(3.0, 2.99, 6))
    assert hidden_runs(runs, least_seen=6) is None
    assert extrapolation(PLAIN, runs, draws=20) is None
    assert len(ranked(PLAIN, runs)) == len(PLAIN)


def test_the_form_that_the_runs_have_is_chosen():
    pick = np.random.default_rng(5)
    n, d = 10 ** pick.uniform(6, 9, 50), 10 ** pick.uniform(8, 11, 50)
    kaplan = np.exp(FORMS["kaplan"].log_loss(np.log([8.8e13, 5.4e13, 0.076, 0.095]), Runs(n, d, np.ones(50))))
    assert ranked(PLAIN, Runs(n, d, kaplan))[0][1].form.name == "kaplan"
    assert ranked(PLAIN, made(50, 0.0))[0][1].form.name == "chinchilla"


def test_of_laws_alike_on_hidden_runs_the_closest_to_all_comes_first(monkeypatch):
    runs = made(14, 0.01, 3)
    split = hidden_runs(runs, least_seen=6)
    assert split is not None
    whole = [form for form in PLAIN if not form.ignores]
    errors = {fitted.form.name: error for error, fitted in ranked(whole, runs)}
    found = {}
    for alike in (1.0, 1.2, np.inf):
        monkeypatch.setattr(extrapolate_module, "ALIKE", alike)
        (error, fitted), *others = ranked(whole, runs)
        assert error <= alike * min(errors.values())
        assert [e for e, _ in others] == sorted(e for e, _ in others)
        assert {f.form.name for _, f in others} | {fitted.form.name} == set(errors)
        found[alike] = np.abs(fitted.residuals).mean() * len(runs) / (len(runs) - len(fitted.theta))
    assert found[np.inf] <= found[1.2] <= found[1.0]


def test_where_none_can_be_hidden_losses_are_taken_to_level_off():
    n, d = (each.ravel() for each in np.meshgrid([1e6, 2e6, 4e6], [1e7, 4e7]))
    none = Runs(n, d, np.ones(6))
    loss = np.exp(FORMS["kaplan"].log_loss(np.log([8.8e13, 5.4e13, 0.076, 0.095]), none))
    assert hidden_runs(none) is None
    first = ranked([FORMS["kaplan"], FORMS["one_exponent"]], Runs(n, d, loss))[0][1]
    assert first.form.name == "one_exponent", "kaplan's form fits to the last digit, as nearly any form of four coefficients may"


def test_a_law_of_one_quantity_is_for_tables_that_vary_one():
    runs = made(30, 0.0)
    of_sizes = Runs(runs.parameters, runs.tokens, (8.8e13 / runs.parameters) ** 0.076)
    forms = [FORMS["kaplan_parameters"], FORMS["chinchilla"]]
    assert ranked(forms, of_sizes)[0][1].form.name == "chinchilla", "that tokens told nothing here may be luck"
    narrow = Runs(runs.parameters, np.full_like(runs.tokens, 1e12), of_sizes.loss)
    assert ranked([*forms, FORMS["kaplan_tokens"]], narrow)[0][1].form.name == "kaplan_parameters"


@pytest.mark.slow
def test_nine_in_ten_fresh_runs_lie_in_their_intervals():
    inside = []
    for seed in range(6):
        runs = made(60, 0.006, seed)
        fresh = made(40, 0.006, 100 + seed)
        _, low, high = predictor(fit(FORMS["chinchilla"], runs), runs, draws=40).predict(fresh)
        inside += ((fresh.loss >= low) & (fresh.loss <= high)).tolist()
    assert 0.85 <= np.mean(inside) <= 0.995


def test_few_runs_make_wide_intervals():
    theta = np.array([*np.log([482.0, 2085.0, 1.8]), 0.35, 0.37])
    pick = np.random.default_rng(0)

    def width(count):
        residuals = 0.01 * pick.permutation(np.linspace(-1, 1, count)) * np.sqrt((count - 5) / count)
        none = np.zeros(0, dtype=np.int64)
        fitted = Fitted(FORMS["chinchilla"], theta, Runs(*np.ones((3, count))), residuals, none, 0.0)
        found = Predictor(fitted, np.array([theta] * 40)).interval(1e9, 2e10)
        return np.log(found.high / found.low)

    assert width(8) > 1.25 * width(20) > 1.25 * 1.02 * width(400)


def test_an_interval_is_wider_further_away():
    runs = made(60, 0.006)
    found = predictor(fit(FORMS["chinchilla"], runs), runs, draws=60)
    near, far = found.interval(1e8, 2e9), found.interval(1e13, 2e14)
    assert near.low < near.value < near.high
    assert np.log(far.high / far.low) > 1.3 * np.log(near.high / near.low)
