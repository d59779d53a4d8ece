"""Choices: n of one seed, each as if it were alone; best_of returns the likeliest per token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from serve.engine.choices import choose, expand
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Completion, Sampling, TokenLogprob


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Engine:
    return Engine.load(tiny_model_dir, EngineConfig(dtype="float64"))


def made(text: str, *logprobs: float) -> Completion:
    entries = tuple(TokenLogprob(1, value) for value in logprobs)
    return Completion(text=text, tokens=(1,) * len(entries), finish_reason="length", logprobs=entries)


def test_all_choices_share_a_seed_and_are_numbered() -> None:
    requests = expand("x", (1, 2), Sampling(n=3))
    assert [(r.id, r.choice, r.prompt) for r in requests] == [("x-0", 0, (1, 2)), ("x-1", 1, (1, 2)), ("x-2", 2, (1, 2))]
    assert len({r.sampling.seed for r in requests}) == 1
    assert requests[0].sampling.seed is not None
    assert expand("x", (1,), Sampling(n=2, seed=7))[1].sampling.seed == 7
    assert [r.id for r in expand("x", (1,), Sampling())] == ["x"]


def test_best_of_ranks_by_the_mean_and_of_equals_takes_the_first() -> None:
    found = [made("long", -1.0, -1.0, -1.0), made("short", -1.5), made("equal", -1.0), made("best", -0.5, -0.5)]
    best = choose(Sampling(n=3, best_of=4), found)
    assert [c.text for c in best.choices] == ["best", "long", "equal"]
    assert best.logprobs is None
    assert choose(Sampling(n=1, best_of=4, logprobs=0), found).logprobs == found[3].logprobs
    assert [c.text for c in choose(Sampling(n=2), found[:2]).choices] == ["long", "short"]


def test_where_there_is_nothing_to_choose_choices_keep_their_order() -> None:
    found = [made("worse", -2.0), made("better", -1.0)]
    assert [c.text for c in choose(Sampling(n=2, best_of=2), found).choices] == ["worse", "better"]
    assert expand("x", (1,), Sampling(n=2, best_of=2))[0].sampling.logprobs is None, "nothing is compared"


def test_each_choice_is_as_if_it_were_alone(engine: Engine) -> None:
    sampling = Sampling(n=3, seed=5, max_tokens=12, temperature=1.0, ignore_eos=True)
    (together,) = engine.generate([[5, 6, 7]], sampling)
    assert [c.tokens for c in together.choices] != [together.tokens] * 3
    for request, completion in zip(expand("alone", (5, 6, 7), sampling), together.choices, strict=True):
        engine.add(request)
        tokens: tuple[int, ...] = ()
        while engine.has_work:
            for emission in engine.step():
                tokens += emission.tokens
        assert tokens == completion.tokens


def test_best_of_returns_the_likeliest_of_what_n_would_have(engine: Engine) -> None:
    prompts, sampling = [[5, 6, 7], [9, 9]], Sampling(seed=3, max_tokens=8, ignore_eos=True)
    everything = engine.generate(prompts, replace(sampling, n=5, logprobs=0))
    best = engine.generate(prompts, replace(sampling, n=2, best_of=5))
    for whole, few in zip(everything, best, strict=True):
        ranked = sorted(whole.choices, key=lambda c: -sum(e.logprob for e in c.logprobs or ()) / len(c.tokens))
        assert [c.tokens for c in few.choices] == [c.tokens for c in ranked[:2]]
        assert few.logprobs is None
