"""A cold start longer than a preemption notice is a lost replica: what a first token must not load or make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.rope import Rope, Rotation

SLOW_TO_IMPORT = {"transformers", "xgrammar", "jinja2", "ray", "scipy", "pandas", "peft", "deepspeed", "matplotlib", "compressed_tensors"}

FIRST_TOKEN = """
import sys
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Sampling

engine = Engine.load(sys.argv[1], EngineConfig(dtype=sys.argv[2], num_threads=1))
(answer,) = engine.generate(["The tern"], Sampling(max_tokens=1, seed=0))
assert len(answer.tokens) == 1
print(*sys.modules)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_token_imports_nothing_slow(dtype: str, tiny_model_dir: Path) -> None:
    command = [sys.executable, "-c", FIRST_TOKEN, str(tiny_model_dir), dtype]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not SLOW_TO_IMPORT & {name.partition(".")[0] for name in done.stdout.split()}


def test_kv_blocks_take_no_memory_before_they_are_used(tiny_model_dir: Path) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc: how much memory is resident is not told here")

    def resident_bytes() -> int:
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmRSS"))

    before = resident_bytes()
    engine = Engine.load(tiny_model_dir, EngineConfig(kv_bytes=1 << 32))
    assert engine.stats()["total_blocks"] > 10_000
    assert resident_bytes() - before < 1 << 29


def test_a_long_context_makes_no_long_table() -> None:
    table = Rotation(Rope(kind="default", theta=5e5, dim=128), 1 << 20, torch.device("cpu")).table
    assert table.shape[1] < 1 << 12
