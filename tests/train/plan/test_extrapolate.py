"""Extrapolation: hidden runs stay hidden, intervals hold what they say, the right law is chosen."""

import numpy as np
import pytest

from tests.train.plan.test_fit import made
from train.plan import extrapolate
from train.plan.extrapolate import extrapolation, hidden_runs, predictor, ranked
from train.plan.fit import fit
from train.plan.forms import FORMS
from train.plan.runs import Runs, read_runs

PLAIN = [form for name, form in FORMS.items() if name != "data_constrained"]


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
    split = extrapolate.hidden_runs(runs, least_seen=6)
    assert split is not None
    errors = {fitted.form.name: error for error, fitted in ranked(PLAIN, runs)}
    found = {}
    for alike in (1.0, 1.2, np.inf):
        monkeypatch.setattr(extrapolate, "ALIKE", alike)
        (error, fitted), *others = ranked(PLAIN, runs)
        assert error <= alike * min(errors.values())
        assert [e for e, _ in others] == sorted(e for e, _ in others)
        assert {f.form.name for _, f in others} | {fitted.form.name} == set(errors)
        found[alike] = np.abs(fitted.residuals).mean() * len(runs) / (len(runs) - len(fitted.theta))
    assert found[np.inf] <= found[1.2] <= found[1.0]


@pytest.mark.slow
def test_nine_in_ten_fresh_runs_lie_in_their_intervals():
    inside = []
    for seed in range(6):
        runs = made(60, 0.006, seed)
        fresh = made(40, 0.006, 100 + seed)
        _, low, high = predictor(fit(FORMS["chinchilla"], runs), runs, draws=40).predict(fresh)
        inside += ((fresh.loss >= low) & (fresh.loss <= high)).tolist()
    assert 0.85 <= np.mean(inside) <= 0.995


def test_an_interval_is_wider_further_away():
    runs = made(60, 0.006)
    found = predictor(fit(FORMS["chinchilla"], runs), runs, draws=60)
    near, far = found.interval(1e8, 2e9), found.interval(1e13, 2e14)
    assert near.low < near.value < near.high
    assert np.log(far.high / far.low) > 1.3 * np.log(near.high / near.low)
