"""The spot policy on Ray's real autoscaler and our own node types: launch, fallback, retirement, a notice, scale to zero and back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Sampling

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_machines_follow_the_load_and_the_market_and_no_stream_notices(tiny_model_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "chaos" / "fleet_run.py"), str(tiny_model_dir), str(tmp_path)]
    environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found["took_s"]), found["num_streams"], "streams")
    assert not found["failures"]
    engine = Engine.load(tiny_model_dir, EngineConfig(dtype="float64", num_threads=1))
    for index, texts in found["texts"].items():
        sampling = Sampling(max_tokens=200, temperature=1.0, seed=int(index), ignore_eos=True)
        assert texts == [engine.generate([f"def f{index}("], sampling)[0].text]
    assert any(decision["give_back"] for decision in found["decisions"]), "the machine on demand was drained, not left to idle"
