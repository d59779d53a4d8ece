"""`sterna plan sweep` on a small tokens folder: its law goes to `plan run`, and what is finished is not trained again."""

import json
from pathlib import Path

import pytest

import sterna
from tests.train.plan.test_run import write_tokens
from train.plan import fit_run
from train.plan import measure as measure_module
from train.plan import sweep as sweep_module
from train.plan.config import PlanConfig, SweepConfig
from train.plan.forms import FORMS
from train.plan.run import plan_run
from train.plan.runs import read_runs
from train.plan.sweep import plan_sweep


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(measure_module, "_TOKENS", 128)
    real = measure_module.measure
    monkeypatch.setattr(measure_module, "measure", lambda *args, **options: real(*args, **options, seconds=0.05))
    monkeypatch.setattr(fit_run, "FORMS", {name: FORMS[name] for name in ("chinchilla", "one_exponent")})
    monkeypatch.setattr(sweep_module, "_room", lambda most: (1, 1))  # one process that imports torch is enough


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, tiny_model_dir):
    return write_tokens(tmp_path_factory.mktemp("text") / "tokens", tiny_model_dir, num_sequences=4000)


@pytest.mark.usefixtures("ray_session")
def test_a_sweep_its_law_and_a_plan_by_it(tokens, tmp_path, monkeypatch, capsys):
    config = SweepConfig(tokens=tokens, output=str(tmp_path / "law"), budget="flops=1.5e10", sizes=2, resamples=20, verify=True)
    trained, real = [], sweep_module._side_by_side

    def until_the_fourth(rungs, *rest):
        for pair in real(rungs, *rest):
            trained.append(pair[0].name)
            yield pair
            if len(trained) == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(sweep_module, "_side_by_side", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        plan_sweep(config)
    report = plan_sweep(config)
    told = report.told
    assert "verified: " in str(report)
    assert len(trained) == len(set(trained)) == 7, "six runs and the one that verifies, each once"
    assert "of 6 runs are there already" in capsys.readouterr().err
    assert len(told["rungs"]) == 6
    assert set(told["law"]) == {"E", "A", "B", "alpha", "beta"}
    assert told["verified"]["run"]["parameters"] > 3 * max(row["parameters"] for row in told["rungs"])
    assert len(read_runs(str(tmp_path / "law" / "runs.csv"))) == 6
    assert not (tmp_path / "law" / "rungs").exists(), "working state is not published"
    monkeypatch.setattr(sweep_module, "_side_by_side", None)
    assert plan_sweep(config).told["law"] == told["law"]
    plan = plan_run(
        PlanConfig(tokens=tokens, output=str(tmp_path / "plan"), budget="flops=1e12", machines="1xL4", law=str(tmp_path / "law"))
    )
    assert str(tmp_path / "law") in (Path(plan.uri) / "plan.toml").read_text()
    assert json.loads((tmp_path / "law" / "law.json").read_text())["embeddings"] == "included"


@pytest.mark.usefixtures("ray_session")
def test_too_little_is_one_line(tokens, tmp_path, capsys):
    assert sterna.main(["plan", "sweep", tokens, "--budget", "flops=1e6", "--output", str(tmp_path / "law")]) == 2
    shown = capsys.readouterr().err
    assert "is too little for a ladder of 4 sizes; flops=" in shown
    assert not (tmp_path / "law").exists()
