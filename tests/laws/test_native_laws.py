"""The engine's laws in bfloat16 on the native kernels, to the bit: tokens *and* log-probabilities.

Alone or batched, drafted or not, prefilled whole or in chunks, preempted, swapped, found in the prefix cache, scored in one pass, on
one thread or more.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.native.library import refusal
from serve.engine.native.runner import NativeRunner
from serve.engine.request import Completion, Request, Sampling

pytestmark = pytest.mark.skipif(refusal() is not None, reason=f"native kernels: {refusal()}")

ENGINES: dict[str, dict[str, object]] = {
    "plain": {"draft": "off", "prefix_cache": False, "max_sequences": 1},
    "batched": {"draft": "off"},
    "drafted": {"draft_max": 5},
    "chunked": {"max_tokens_per_step": 9, "max_sequences": 4},
    "few blocks": {"num_blocks": 11},
    "few blocks, swapped": {"num_blocks": 11, "preempt": "swap", "prefix_cache": False},
}


LINES = ["    total = total + 1\n", "    print(index)\n", "assert add(1, 2) == 3\n"]


def make_requests(seed: int, engine: Engine) -> list[Request]:
    """Repetitive prompts, so that drafts hold; a shared prefix of more than a block."""
    vocab_size = engine.shape.vocab_size
    rng = random.Random(seed)
    shared = tuple(rng.randrange(4, vocab_size) for _ in range(37))
    requests = []
    for i in range(6):
        motif = tuple(engine.tokenizer.encode(LINES[i % 3])) if i < 4 else (7, 8)
        sampling = Sampling(
            max_tokens=rng.randrange(15, 40),
            temperature=rng.choice([0.0, 0.9]),
            seed=i,
            logprobs=2,
            ignore_eos=True,
            top_k=rng.choice([0, 9]),
        )
        requests.append(Request(id=f"r{i}", prompt=(shared if i % 2 else ()) + motif * rng.randrange(3, 6), sampling=sampling))
    return requests


def run(engine: Engine, requests: list[Request]) -> list[Completion]:
    return engine.generate([r.prompt for r in requests], [r.sampling for r in requests])


def told(completions: list[Completion]) -> list[object]:
    """All that must be equal: tokens, text, and every log-probability."""
    return [(c.tokens, c.text, c.finish_reason, c.logprobs) for c in completions]


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
@pytest.mark.parametrize("model", ["tiny", "tiny-code"])
def test_company_changes_no_bit(
    model: str, kv_dtype: str, request: pytest.FixtureRequest, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "_verify_cost", lambda self: 0.0)  # draft however slow this machine is
    folder = tiny_model_dir if model == "tiny" else request.getfixturevalue("models_dir") / "tiny-code"
    common = {"dtype": "bfloat16", "kernels": "native", "max_sequences": 5, "num_blocks": 200, "kv_dtype": kv_dtype}
    engines = {name: Engine.load(folder, EngineConfig(**{**common, **fields})) for name, fields in ENGINES.items()}
    assert all(isinstance(engine.runner, NativeRunner) for engine in engines.values())
    for seed in range(2 if model == "tiny" else 1):
        requests = make_requests(seed, engines["plain"])
        expected = run(engines["plain"], requests)
        for name, engine in engines.items():
            assert told(run(engine, requests)) == told(expected), name
        check_scores(engines["plain"], requests, expected)
    stats = {name: engine.stats() for name, engine in engines.items()}
    assert stats["few blocks"]["preemptions"] > 0, "the law was not put to the test"
    assert stats["few blocks, swapped"]["swapped"] > 0
    assert stats["drafted"]["drafted"] > 0
    assert model == "tiny" or stats["drafted"]["accepted"] > 0
    assert stats["batched"]["cached_tokens"] > 0


def check_scores(engine: Engine, requests: list[Request], completions: list[Completion]) -> None:
    """One teacher-forced pass gives the very log-probabilities that decoding told."""
    for request, completion in zip(requests, completions, strict=True):
        text = [*request.prompt, *completion.tokens]
        scores = engine.logits(text[:-1])[len(request.prompt) - 1 :].double().log_softmax(-1)
        assert completion.logprobs is not None
        assert [p.logprob for p in completion.logprobs] == scores.gather(-1, torch.tensor(completion.tokens)[:, None]).flatten().tolist()


def test_threads_change_no_bit(tiny_model_dir: Path) -> None:
    before, answers = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            engine = Engine.load(tiny_model_dir, EngineConfig(dtype="bfloat16", kernels="native", num_threads=num_threads))
            answers.append(told(run(engine, make_requests(3, engine))))
    finally:
        torch.set_num_threads(before)
    assert answers[0] == answers[1] == answers[2]
