"""The pace of prompts: a step takes about as long as asked for, whatever the machine; prompts always advance."""

from __future__ import annotations

import random

import pytest

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.pace import PromptPace
from serve.engine.request import Request, Sampling
from serve.engine.toy import ToyRunner, ToyTokenizer

SIZE = 4


@pytest.mark.parametrize(("plain_s", "token_s"), [(0.02, 0.001), (0.005, 0.0002), (0.09, 0.004)])
def test_steps_come_to_take_what_they_should(plain_s: float, token_s: float) -> None:
    pace, rng = PromptPace(max_step_s=0.2, least=16), random.Random(0)
    seconds = []
    for step in range(300):
        num_tokens = 0 if step % 3 == 0 else pace.limit
        seconds.append((plain_s + num_tokens * token_s) * rng.uniform(0.8, 1.2))
        pace.observe(num_tokens, seconds[-1])
    with_prompts = [s for step, s in enumerate(seconds) if step % 3 and step > 100]
    assert sum(with_prompts) / len(with_prompts) == pytest.approx(0.2, rel=0.1)


def test_without_a_goal_there_is_no_limit() -> None:
    pace = PromptPace(max_step_s=None, least=16)
    pace.observe(100, 5.0)
    assert pace.limit is None


def test_prompts_advance_even_where_the_goal_is_out_of_reach() -> None:
    pace = PromptPace(max_step_s=0.01, least=16)
    assert pace.limit == 16, "before anything is known"
    pace.observe(0, 0.5)
    pace.observe(16, 0.9)
    assert pace.limit == 16


@pytest.mark.parametrize(("max_step_s", "fewest", "most"), [(1e-9, SIZE, SIZE), (1e6, 80, 80)])
def test_an_engine_keeps_to_what_its_steps_took(max_step_s: float, fewest: int, most: int) -> None:
    runner = ToyRunner(vocab_size=27, num_blocks=200, block_size=SIZE)
    config = EngineConfig(block_size=SIZE, num_blocks=200, draft="off", max_step_s=max_step_s)
    engine = Engine(runner, ToyTokenizer(), config, "toy", 400)  # type: ignore[arg-type]
    engine.add(Request(id="stream", prompt=(1, 2, 3), sampling=Sampling(max_tokens=200, ignore_eos=True)))
    for _ in range(3):
        engine.step()
    engine.add(Request(id="other", prompt=tuple([4, 5] * 40)))
    before = engine.stats()["tokens_computed"]
    engine.step()
    assert fewest <= engine.stats()["tokens_computed"] - before - 1 <= most
