"""The native runner: what piecewise and in one call have in common, and a request's rows wherever others go."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.native.cache import NativeCache
from serve.engine.native.library import refusal
from serve.engine.native.runner import NativeRunner, _merged
from serve.engine.request import Sampling

pytestmark = pytest.mark.skipif(refusal() is not None, reason=f"native kernels: {refusal()}")


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Engine:
    return Engine.load(tiny_model_dir, EngineConfig(dtype="bfloat16", kernels="native", num_blocks=60))


def test_one_call_and_piece_by_piece_agree_but_for_rounding(engine: Engine) -> None:
    runner = engine.runner
    assert isinstance(runner, NativeRunner)
    tokens = list(range(4, 104))
    logits, pieces = runner.logits(tokens), runner._piecewise.logits(tokens)
    assert (logits - pieces).abs().mean() < 0.02 * logits.std()
    states = runner.hidden(tokens)
    assert (states - runner._piecewise.hidden(tokens)).abs().mean() < 0.02 * states.std()


def test_piece_by_piece_too_company_changes_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 between the products, but every row by itself."""
    runner = engine.runner
    assert isinstance(runner, NativeRunner)
    monkeypatch.setattr(engine, "runner", runner._piecewise)
    prompts = [[7 + i, 8, 9, 10 + i] * (6 + 3 * i) for i in range(5)]
    sampling = Sampling(temperature=0, max_tokens=40, ignore_eos=True, logprobs=1)
    alone = [engine.generate([prompt], sampling)[0] for prompt in prompts]
    together = engine.generate(prompts, sampling)
    assert [(c.tokens, c.logprobs) for c in alone] == [(c.tokens, c.logprobs) for c in together]


def test_scoring_leaves_the_kv_blocks_alone(engine: Engine) -> None:
    cache = engine.runner.cache
    assert isinstance(cache, NativeCache)
    before = cache.data.clone()
    logits = engine.logits(range(4, 40))
    assert torch.equal(cache.data, before)
    assert torch.equal(engine.logits(range(4, 20)), logits[:16]), "nobody sees the future"


def test_rows_of_two_passes_in_the_chunks_own_order() -> None:
    def chunk(adapter: str, num_drafted: int, samples: bool = True) -> SimpleNamespace:
        return SimpleNamespace(sequence=SimpleNamespace(request=SimpleNamespace(adapter=adapter)), draft=[0] * num_drafted, samples=samples)

    chunks = [chunk("a", 0), chunk("", 1), chunk("", 0, samples=False), chunk("a", 2), chunk("", 0)]
    plain, adapted = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[10.0], [20.0], [30.0], [40.0]])
    assert _merged(chunks, plain, adapted).flatten().tolist() == [10, 1, 2, 20, 30, 40, 3]
