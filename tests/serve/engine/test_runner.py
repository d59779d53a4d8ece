"""The runner: whatever a step holds, its logits are those of one pass over each text, in the batch's own order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.blocks import BlockPool, root_hash
from serve.engine.config import EngineConfig
from serve.engine.draft import AnpdDrafter
from serve.engine.engine import Engine
from serve.engine.request import Request, Run, Sampling
from serve.engine.runner import Runner
from serve.engine.schedule import Scheduler
from serve.engine.sequence import Sequence
from serve.engine.text import TextStream, Tokenizer

SIZE, NUM_BLOCKS = 4, 24


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Engine:
    return Engine.load(tiny_model_dir, EngineConfig(dtype="float64", block_size=SIZE, num_blocks=NUM_BLOCKS, draft="off"))


def make_sequence(arrival: int, prompt: list[int], max_tokens: int, tokenizer: Tokenizer) -> Sequence:
    request = Request(id=str(arrival), prompt=tuple(prompt), sampling=Sampling(max_tokens=max_tokens, seed=0))
    return Sequence(
        request=request,
        arrival=arrival,
        limit=len(prompt) + max_tokens,
        stop_ids=frozenset({0}),
        text=TextStream(tokenizer, prompt),
        drafter=AnpdDrafter(order=3, max_draft=4),
        root=root_hash("m"),
    )


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), most=st.integers(5, 40), prefix_cache=st.booleans(), num_blocks=st.integers(9, NUM_BLOCKS))
def test_every_row_is_the_row_of_one_pass_over_its_text(engine: Engine, seed: int, most: int, prefix_cache: bool, num_blocks: int) -> None:
    """Chunks, drafts that hold or fall, shared prefixes, preemption: the scheduler's own mixtures, with tokens drawn by chance."""
    rng = random.Random(seed)
    scheduler = Scheduler(BlockPool(num_blocks), block_size=SIZE, max_sequences=3, max_tokens_per_step=most, prefix_cache=prefix_cache)
    common = [rng.choice([5, 6]) for _ in range(9)]
    for arrival in range(4):
        prompt = common[: rng.randint(1, 9)] + [rng.choice([5, 6, 7]) for _ in range(rng.randint(0, 17))]
        scheduler.add(make_sequence(arrival, prompt, rng.randint(1, 5), engine.tokenizer))
    while scheduler.running or scheduler.waiting:
        batch = scheduler.plan()
        logits = engine.runner.run(batch)
        expected = [engine.runner.logits(c.sequence.tokens + c.draft)[-len(c.draft) - 1 :] for c in batch.sampling]
        assert logits.shape == (sum(map(len, expected)), engine.shape.vocab_size)
        if expected:
            torch.testing.assert_close(logits, torch.cat(expected), rtol=0, atol=1e-9)
        held = [rng.randint(0, len(c.draft)) for c in batch.sampling]
        scheduler.commit(batch, [Run([*c.draft[:n], rng.choice([5, 6, 7, 8])]) for c, n in zip(batch.sampling, held, strict=True)])


def test_scoring_a_text_leaves_the_kv_blocks_alone(engine: Engine) -> None:
    runner: Runner = engine.runner
    before = [layer.clone() for layer in runner.cache.layers]
    logits = runner.logits(range(4, 40))
    assert logits.shape == (36, engine.shape.vocab_size)
    assert all(torch.equal(a, b) for a, b in zip(before, runner.cache.layers, strict=True))
    torch.testing.assert_close(runner.logits(range(4, 20)), logits[:16], rtol=0, atol=1e-9)  # nobody sees the future
