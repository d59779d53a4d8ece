"""What runs where: the choice of kernels and of the KV's kind, and how many blocks there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from serve.engine import kernels
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.kernels import runs_native
from serve.engine.native.library import refusal
from serve.engine.native.runner import NativeRunner
from serve.engine.runner import Runner

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(refusal() is not None, reason=f"native kernels: {refusal()}")


@needs_kernels
@pytest.mark.parametrize(
    ("fields", "runner", "kv"),
    [
        ({}, NativeRunner, "native-bfloat16"),
        ({"kv_dtype": "int8"}, NativeRunner, "native-int8"),
        ({"kernels": "torch"}, Runner, "torch-bfloat16"),
        ({"kernels": "torch", "kv_dtype": "int8"}, Runner, "torch-int8-bfloat16"),
        ({"block_size": 4}, Runner, "torch-bfloat16"),
        ({"dtype": "float32"}, Runner, "torch-float32"),
        ({"dtype": "float32", "kv_dtype": "int8"}, Runner, "torch-int8-float32"),
    ],
)
def test_what_runs_where(fields: dict[str, object], runner: type, kv: str, tiny_model_dir: Path) -> None:
    engine = Engine.load(tiny_model_dir, EngineConfig(**{"dtype": "bfloat16", **fields}))
    assert type(engine.runner) is runner
    assert engine.runner.cache.kv_kind == kv
    exact = Engine.load(tiny_model_dir, EngineConfig(dtype="float64")).logits(list(range(4, 60)))
    error = (engine.logits(list(range(4, 60))).double() - exact).abs().mean()
    assert error < 0.05 * exact.std()


def test_insisting_on_kernels_that_cannot_run_is_refused() -> None:
    config = EngineConfig(kernels="native")
    with pytest.raises(ValueError, match="kernels: native kernels run bfloat16 on a CPU, not"):
        runs_native(config, torch.float32, CPU)
    assert not runs_native(EngineConfig(), torch.float32, CPU)
    assert not runs_native(EngineConfig(), torch.bfloat16, torch.device("cuda"))
    assert not runs_native(EngineConfig(kernels="torch"), torch.bfloat16, CPU)


def test_as_many_blocks_as_the_settings_say(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(**fields: object) -> int:
        return Engine.load(tiny_model_dir, EngineConfig(dtype="float32", **fields)).runner.cache.num_blocks

    each = 2 * 2 * 2 * 16 * 16 * 4  # layers, keys and values, KV heads, tokens, head_dim, bytes
    assert count(num_blocks=7) == 7
    assert count(kv_bytes=10 * each + 5) == 10
    assert count(max_sequences=3, max_length=100) == 3 * 7
    monkeypatch.setattr(kernels, "DEFAULT_KV_BYTES", 9 * each)
    assert count(max_sequences=3, max_length=100) == 9
    assert count(max_sequences=3, max_length=200) == 13, "one sequence of the greatest length always fits"
    with pytest.raises(ValueError, match=f"kv_bytes: 100 holds no block of {each} bytes"):
        count(kv_bytes=100)


@pytest.mark.parametrize("num_blocks", [10**12, 10**30])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_more_blocks_than_memory_are_refused_in_one_line(tiny_model_dir: Path, num_blocks: int, dtype: str) -> None:
    with pytest.raises(ValueError, match=f"KV: {num_blocks} blocks of .* bytes are more than there is memory for; set num_blocks"):
        Engine.load(tiny_model_dir, EngineConfig(dtype=dtype, num_blocks=num_blocks))


def test_whether_kernels_are_native_is_asked_once(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def native(kernels: str) -> bool:
        asked.append(kernels)
        return False

    monkeypatch.setattr(kernels.library, "native", native)
    Engine.load(tiny_model_dir, EngineConfig(dtype="bfloat16"))
    assert asked == ["auto"]
