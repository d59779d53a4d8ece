"""`sterna plan fit` as a user calls it."""

import json

import numpy as np
import pytest

import sterna
from cluster.artifact import open_artifact
from tests.train.plan.test_fit import made
from train.plan import extrapolate, fit_run
from train.plan.config import FitConfig
from train.plan.fit_run import plan_fit
from train.plan.forms import FORMS


@pytest.fixture
def table(tmp_path):
    runs = made(40, 0.004)
    loss = runs.loss.copy()
    loss[11] *= 1.6
    path = tmp_path / "runs.csv"
    rows = zip(runs.parameters, runs.tokens, loss, strict=True)
    path.write_text("\n".join(["parameters,tokens,loss", *(f"{n:.6g},{d:.6g},{y:.6g}" for n, d, y in rows)]))
    return path


def test_json_has_the_law_and_how_far_it_goes(table, tmp_path, capsys):
    arguments = ["plan", "fit", str(table), "--resamples", "20", "--predict", "1e9:20e9", "--plot", str(tmp_path / "fit.png"), "--json"]
    assert sterna.main([*arguments, "--output", str(tmp_path / "fit")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["law"]) == {"E", "A", "B", "alpha", "beta"}
    for name, truth in {"E": 1.8172, "alpha": 0.3478, "beta": 0.3658}.items():
        interval = told["law"][name]
        assert interval["low"] <= interval["value"] <= interval["high"]
        assert 0.7 * interval["low"] < truth < 1.3 * interval["high"]
    assert told["extrapolation"]["error"] < 0.02
    assert [row["line"] for row in told["outliers"]] == [13]
    (asked,) = told["predictions"]
    assert asked["loss"]["low"] < asked["loss"]["value"] < asked["loss"]["high"]
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
    made_by = open_artifact(str(tmp_path / "fit"), made_by="fit")
    assert made_by.manifest.counts == {"runs_in": 40, "fitted": 39, "left_out": 1}
    assert json.loads((tmp_path / "fit" / "law.json").read_text())["law"] == told["law"]
    assert {"fit", "frontier", "sizes", "residuals", "hidden"} == set(made_by.manifest.figures)


def test_a_finished_fit_is_told_again_without_fitting(table, tmp_path, capsys, monkeypatch):
    arguments = ["plan", "fit", str(table), "--resamples", "20", "--output", str(tmp_path / "fit"), "--json"]
    assert sterna.main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(fit_run, "_fitted", None)  # a second fit would fail
    assert sterna.main(arguments) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == first
    assert "already done" in told.err


@pytest.fixture
def _two_forms(monkeypatch):
    monkeypatch.setattr(fit_run, "FORMS", {name: FORMS[name] for name in ("chinchilla", "one_exponent")})


@pytest.mark.usefixtures("_two_forms")
def test_the_choice_of_outliers_reaches_every_law(table):
    told = plan_fit(FitConfig(runs=str(table), resamples=20)).told
    kept = plan_fit(FitConfig(runs=str(table), resamples=20, outlier_sigmas=1e6)).told
    assert not kept["outliers"]
    assert kept["laws"]["one_exponent"] != told["laws"]["one_exponent"], "with the wrong record in it, the law is another"


@pytest.mark.usefixtures("_two_forms")
def test_chinchillas_law_is_resampled_once_where_it_is_the_chosen_one(tmp_path, monkeypatch):
    runs, seen = made(40, 0.0), []
    path = tmp_path / "runs.csv"
    rows = zip(runs.parameters, runs.tokens, runs.loss, strict=True)
    path.write_text("\n".join(["parameters,tokens,loss", *(f"{n},{d},{y}" for n, d, y in rows)]))
    real = fit_run.bootstrap

    def counted(fitted, *args, **options):
        seen.append((fitted.form.name, len(fitted.runs)))
        return real(fitted, *args, **options)

    monkeypatch.setattr(fit_run, "bootstrap", counted)
    monkeypatch.setattr(extrapolate, "bootstrap", counted)
    assert plan_fit(FitConfig(runs=str(path), resamples=20)).told["chosen"]["law"] == "chinchilla"
    assert seen.count(("chinchilla", 40)) == 1


def test_the_printed_answer_names_law_outliers_and_counting(table, capsys):
    assert sterna.main(["plan", "fit", str(table), "--resamples", "20", "--embeddings", "excluded"]) == 0
    said = capsys.readouterr().out
    assert "over 39 runs; N is without the embeddings" in said
    assert "left out: line 13" in said
    assert "largest runs, hidden" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.csv"], "none.csv: no such file"),
        (["x.csv", "--predict", "1e9"], "is not PARAMETERS:TOKENS"),
        (["x.csv", "--predict", "1e9:inf"], "both finite"),
        (["x.csv", "--resamples", "1"], "use 20 to 100000"),
        (["x.csv", "--outlier-sigmas", "1"], "must be above 2"),
        (["x.csv", "--seed", "-1"], "seed: is -1; must not be negative"),
    ],
)
def test_mistakes_are_one_line(arguments, said, capsys):
    assert sterna.main(["plan", "fit", *arguments]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(("arguments", "said"), [
    (["--plot", "/no/such/folder/fit.png"], "plot: /no/such/folder/fit.png cannot be written"),
    (["--output", "/proc/fit"], "/proc/fit: cannot be written"),
])  # fmt: skip
def test_what_cannot_be_written_is_one_line_before_anything_is_fitted(table, arguments, said, capsys, monkeypatch):
    monkeypatch.setattr(fit_run, "fitted_to", None)
    assert sterna.main(["plan", "fit", str(table), *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("_two_forms")
def test_a_table_along_a_line_says_what_it_cannot_tell(tmp_path, capsys):
    path = tmp_path / "runs.csv"
    rows = [(n, 20 * n, 1.8 + 482 / n**0.35 + 2085 / (20 * n) ** 0.37) for n in np.geomspace(1e7, 1e9, 8)]
    path.write_text("\n".join(["parameters,tokens,loss", *(f"{n:.0f},{d:.0f},{y:.5f}" for n, d, y in rows)]))
    plan_fit(FitConfig(runs=str(path), resamples=20))
    assert "parameters and tokens change together" in capsys.readouterr().err


def test_a_picture_that_cannot_be_drawn_is_one_line(table, tmp_path, capsys):
    assert sterna.main(["plan", "fit", str(table), "--resamples", "20", "--plot", str(tmp_path / "fit.xyz")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_pairs_of_predict():
    assert FitConfig.pair("70e9:1.4e12") == (70e9, 1.4e12)
    assert np.isclose(FitConfig.pair(" 1 : 2 ")[1], 2)
