"""The storm, short: a strike with notice and one without, in the middle of four streams and more, change nothing that a client sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.storm import main

ROOT = Path(__file__).resolve().parents[2]


def test_machines_taken_with_and_without_notice_change_no_stream(
    models_dir: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["--strikes", "2", "--streams", "12", "--tokens", "400", "--notice-s", "4", "--pause-s", "1", "--parts", "kv"]
    where = [
        "--model",
        models_dir / "tiny-code",
        "--prompts",
        data_dir / "code/HumanEval.jsonl.gz",
        "--trace",
        data_dir / "traces/spot/bamboo-p3.csv",
    ]
    command = [sys.executable, "-m", "benchmarks.storm", *plan, *map(str, where), "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "every promise held" in done.stdout
    found = json.loads((tmp_path / "storm.json").read_text())["kv"]
    assert found["differences"] == []
    assert found["complete"] == found["streams"] >= 14
    assert (found["tokens_missing"], found["tokens_surplus"]) == (0, 0)
    assert (found["strikes"], found["with_notice"]) == (2, 1)
    assert found["fewest_hit"] >= 4
    assert sum(count for times, count in found["hits"].items() if times != "0") >= 4
    assert found["gaps"]["kv"]["count"] >= 1
    assert found["gaps"]["crash"]["count"] >= 1
    assert found["most_computed_after_kv"] <= 16
    assert (tmp_path / "storm.png").stat().st_size > 0
    assert main(["--show", "table", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out + "every promise held\n" == done.stdout  # measured once, told again
