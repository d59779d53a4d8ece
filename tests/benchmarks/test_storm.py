"""What the storm keeps on disk: a rerun goes on, or tells; other code or options never mix into the same figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import benchmarks.storm
from benchmarks.storm import Results, arguments, code_digest, main
from benchmarks.storm_report import broken_promises

PLAN = {"strikes": "2", "code": "c1"}


@pytest.fixture(autouse=True)
def code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.storm, "code_digest", lambda: "c1")


def wave(name: str) -> dict[str, object]:
    stream = {"stream": name, "kind": "greedy", "question": 0, "choice": 0, "num_tokens": 9, "num_wanted": 9, "complete": True}
    strike = {"victim": "spot-1", "node_id": "n1", "notice_s": 10.0, "at_s": 1.0, "gone_s": 11.0, "aimed": [name]}
    rest = {"silence_s": 0.1, "difference": "", "why": None}
    return {"began_s": 0.0, "ended_s": 9.0, "streams": [stream | rest], "strikes": [strike], "stays": []}


def test_figures_are_on_disk_after_every_wave_and_a_rerun_goes_on(tmp_path: Path) -> None:
    first = Results(tmp_path, PLAN, fresh=False)
    first.add("kv", wave("a"))
    second = Results(tmp_path, PLAN, fresh=False)
    assert len(second.strikes("kv")) == 1
    second.add("kv", wave("b"))
    found = json.loads((tmp_path / "storm.json").read_text())
    assert (found["kv"]["num_waves"], found["kv"]["streams"], found["kv"]["hits"]) == (2, 2, {"0": 2})
    assert (tmp_path / "storm.png").stat().st_size > 0
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize(("plan", "fresh"), [({**PLAN, "code": "c2"}, False), ({**PLAN, "strikes": "3"}, False), (PLAN, True)])
def test_other_code_or_options_begin_anew_and_keep_what_there_was(tmp_path: Path, plan: dict[str, str], fresh: bool) -> None:
    Results(tmp_path, PLAN, fresh=False).add("kv", wave("a"))
    assert Results(tmp_path, plan, fresh=fresh).waves("kv") == []
    assert json.loads((tmp_path / "storm.before.json").read_text())["kv"]["num_waves"] == 1


def test_figures_over_which_the_code_changed_are_kept_and_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path, PLAN, fresh=False)
    results.add("kv", wave("a"))
    assert not any("code changed" in what for what in broken_promises(results.found, num_strikes=1))
    monkeypatch.setattr(benchmarks.storm, "code_digest", lambda: "c2")
    results.add("kv", wave("b"))
    monkeypatch.setattr(benchmarks.storm, "code_digest", lambda: "c1")
    results.add("kv", wave("c"))
    found = json.loads((tmp_path / "storm.json").read_text())
    assert found["kv"]["num_waves"] == 3
    assert any("code changed" in what for what in broken_promises(found, num_strikes=1))


def test_the_digest_is_of_the_code_that_matters(tmp_path: Path) -> None:
    for name in ("serve/engine/deep.py", "benchmarks/storm_x.py", "pipelines/drill.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        before = code_digest(tmp_path)
        (tmp_path / name).write_text("x = 1\n")
        assert code_digest(tmp_path) != before
    before = code_digest(tmp_path)
    (tmp_path / "serve/notes.md").write_text("no code")
    (tmp_path / "benchmarks/engine.py").write_text("x = 1\n")
    assert code_digest(tmp_path) == before


def test_show_tells_what_was_measured_and_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Results(tmp_path, PLAN, fresh=False).add("kv", wave("a"))
    assert main(["--show", "markdown", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("| | KV moves where it pays |\n")
    assert main(["--show", "table", "--output", str(tmp_path)]) == 0
    assert "strikes by stream: 1 streams 0x" in capsys.readouterr().out
    assert main(["--show", "table", "--output", str(tmp_path / "nothing")]) == 2


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--streams", "8", "--output", str(tmp_path)]) == 2
    assert "--streams: 8 cannot be four and more on each of three machines" in capsys.readouterr().err
    assert main(["--model", str(tmp_path / "none"), "--output", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_default_is_the_whole_storm() -> None:
    args = arguments().parse_args([])
    assert (args.strikes, args.streams, args.notice_s, args.dtype, args.parts) == (22, 32, 10.0, "float64", ["kv", "recompute", "plain"])
