"""The fire drill as a user runs it: a process of its own, on a cluster of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import json, sys
from cluster.settings import parse
from pipelines.drill import drill
from pipelines.config import DrillConfig

manifest = drill(parse(DrillConfig, json.loads(sys.argv[1]), where="test")).manifest
print(json.dumps({"counts": manifest.counts, "figures": list(manifest.figures)}))
"""


def drilled(**fields: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(fields)], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict[str, Any], *, streams: int) -> None:
    counts = found["counts"]
    assert counts["streams"] == streams
    assert (counts["tokens_lost"], counts["tokens_repeated"], counts["preemptions"]) == (0, 0, 2)
    assert counts["moved_with_notice"] >= 1
    assert counts["resumed_after_crash"] >= 1
    assert len([name for name in found["figures"] if name.startswith("timeline")]) == 2


@pytest.mark.slow  # the storm beside it is the short one, and `make journey` drills too
def test_a_short_drill_loses_and_repeats_nothing(models_dir: Path, tmp_path: Path) -> None:
    found = drilled(model=str(models_dir / "tiny-code"), output=str(tmp_path / "drill"), streams=5, tokens=200, notice_s=2)
    check(found, streams=12)


@pytest.mark.slow
def test_a_long_drill_loses_and_repeats_nothing(models_dir: Path, tmp_path: Path) -> None:
    found = drilled(model=str(models_dir / "tiny-code"), output=str(tmp_path / "drill"), streams=30, tokens=600, notice_s=10, seed=7)
    check(found, streams=72)
