"""Scores and embeddings: transformers' numbers, the same alone or beside others, whole or in parts, while requests run."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Request, Sampling
from serve.engine.score import packs, passes


def load(folder: Path, **fields: Any) -> Engine:
    return Engine.load(folder, EngineConfig(**{"dtype": "float32", "block_size": 4, "num_blocks": 200, **fields}))


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Engine:
    return load(tiny_model_dir)


@pytest.fixture(scope="module")
def theirs(tiny_model_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()


def make_texts(count: int = 9) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(4, 400) for _ in range(rng.choice([2, 3, 7, 19, 40, 90]))] for _ in range(count)]


@torch.no_grad()
def their_logprobs(theirs: Any, text: list[int]) -> torch.Tensor:
    """Of each token after the first."""
    table = theirs(torch.tensor([text])).logits[0].log_softmax(-1)
    return table[:-1].gather(-1, torch.tensor(text[1:])[:, None]).flatten()


@pytest.mark.parametrize("max_tokens", [16, 64, 512])
def test_scores_are_transformers(max_tokens: int, tiny_model_dir: Path, theirs: Any) -> None:
    texts, told = make_texts(), []
    engine = load(tiny_model_dir, max_tokens_per_step=max_tokens)
    scores = engine.score(texts, progress=told.append)
    assert sum(told) == sum(len(text) - 1 for text in texts)
    assert max(told) <= max_tokens
    for text, found in zip(texts, scores, strict=True):
        expected = their_logprobs(theirs, text)
        assert [token.token for token in found.tokens] == text[1:]
        torch.testing.assert_close(torch.tensor([token.logprob for token in found.tokens]), expected, rtol=0, atol=1e-4)
        assert found.logprob == pytest.approx(float(expected.sum()), abs=1e-2)
        assert found.perplexity == pytest.approx(math.exp(-float(expected.mean())), rel=1e-3)


def test_a_continuation_is_scored_after_its_text(engine: Engine, theirs: Any) -> None:
    prompts, rests = ["The tern", [9, 8, 7]], [" flies from pole", [6, 5]]
    tokens = engine.tokenizer.encode("The tern"), engine.tokenizer.encode(" flies from pole")
    first, second = engine.score(prompts, rests, num_top=3)
    expected = their_logprobs(theirs, [*tokens[0], *tokens[1]])[len(tokens[0]) - 1 :]
    torch.testing.assert_close(torch.tensor([token.logprob for token in first.tokens]), expected, rtol=0, atol=1e-4)
    assert [token.token for token in second.tokens] == [6, 5]
    for token in (*first.tokens, *second.tokens):
        assert len(token.top) == 3
        assert token.top[0][1] >= token.top[1][1] >= token.top[2][1]
        assert token.logprob <= token.top[0][1]


def test_what_greedy_decoding_gives_is_said_to_be_greedy(engine: Engine) -> None:
    prompt = [5, 6, 7, 8]
    answer = engine.generate([prompt], Sampling(temperature=0, max_tokens=12, ignore_eos=True))[0].tokens
    other = [*answer[:-1], (answer[-1] + 1) % 400]
    assert [found.is_greedy for found in engine.score([prompt, prompt], [answer, other])] == [True, False]


def test_a_text_in_parts_is_greedy_only_if_every_part_is(tiny_model_dir: Path) -> None:
    engine = load(tiny_model_dir, max_tokens_per_step=16)
    prompt, odd = [9], make_texts(1)[0][:1] * 15
    (rest,) = engine.generate([[*prompt, *odd]], Sampling(max_tokens=12, temperature=0.0, ignore_eos=True))
    assert engine.score([[*prompt, *odd]], [rest.tokens])[0].is_greedy
    assert not engine.score([prompt], [[*odd, *rest.tokens]])[0].is_greedy, "of two parts, the second is"


@pytest.mark.parametrize("max_tokens", [16, 512])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_transformers_hidden_states(pooling: str, max_tokens: int, tiny_model_dir: Path, theirs: Any) -> None:
    texts = make_texts()
    engine = load(tiny_model_dir, max_tokens_per_step=max_tokens)
    found = engine.embed(texts, pooling=pooling, normalize=False)
    unit = engine.embed(texts, pooling=pooling)
    with torch.no_grad():
        states = [theirs.model(torch.tensor([text])).last_hidden_state[0] for text in texts]
    expected = torch.stack([s.mean(0) if pooling == "mean" else s[-1] for s in states])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(unit, expected / expected.norm(dim=-1, keepdim=True), rtol=0, atol=1e-4)


def test_reading_disturbs_no_live_request(tiny_model_dir: Path) -> None:
    alone, engine = (load(tiny_model_dir, dtype="float64") for _ in range(2))
    request = Request(id="live", prompt=tuple(range(5, 25)), sampling=Sampling(temperature=0, max_tokens=20, ignore_eos=True))
    expected = alone.generate([request.prompt], request.sampling)[0].tokens
    engine.add(request)
    tokens: list[int] = []
    while engine.has_work:
        tokens += [token for emission in engine.step() for token in emission.tokens]
        engine.score(make_texts(3))
        engine.embed(make_texts(3))
    assert tuple(tokens) == expected


def test_live_requests_take_their_steps_between_the_passes_of_an_embedding(tiny_model_dir: Path) -> None:
    alone, engine = (load(tiny_model_dir, dtype="float64", max_tokens_per_step=16) for _ in range(2))
    request = Request(id="live", prompt=tuple(range(5, 25)), sampling=Sampling(temperature=0, max_tokens=20, ignore_eos=True))
    tokens: list[int] = []
    engine.add(request)
    texts = [list(range(1, 101)), [5, 6, 7], [8] * 20]
    passes, sizes = engine.embedding(texts), []
    found = None
    while found is None:
        tokens += [token for emission in engine.step() for token in emission.tokens]
        try:
            sizes.append(next(passes))
        except StopIteration as end:
            found = end.value
    assert max(sizes) <= 16
    assert sum(sizes) == 123
    torch.testing.assert_close(found, alone.embed(texts), rtol=0, atol=1e-12)
    while engine.has_work:
        tokens += [token for emission in engine.step() for token in emission.tokens]
    assert tuple(tokens) == alone.generate([request.prompt], request.sampling)[0].tokens


def test_no_text_is_no_work(engine: Engine) -> None:
    assert engine.score([]) == []
    assert engine.embed([]).shape == (0, engine.shape.hidden_size)


def test_errors_name_the_text(engine: Engine) -> None:
    with pytest.raises(ValueError, match="texts: number 1 has 1 tokens; give at least 2"):
        engine.score([[1, 2], [3]])
    with pytest.raises(ValueError, match="texts: number 0 has 0 tokens"):
        engine.embed([[]])
    with pytest.raises(ValueError, match="number 0 has token 400, outside the vocabulary of 400"):
        engine.embed([[400]])
    with pytest.raises(ValueError, match="number 0 has 600 tokens, beyond the context of 512"):
        engine.embed([[5] * 600])
    with pytest.raises(ValueError, match="continuations: 1 for 2 texts"):
        engine.score([[5], [6]], [[7]])
    with pytest.raises(ValueError, match="adapter: 'none' is not loaded"):
        engine.embed([[5]], adapter="none")
    with pytest.raises(ValueError, match="pooling: 'max' is unknown"):
        engine.embed([[5]], pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_top: -1 is negative"):
        engine.score([[5, 6]], num_top=-1)


def test_no_more_alternatives_than_there_are_tokens(engine: Engine) -> None:
    (found,) = engine.score([[5, 6]], num_top=10_000)
    assert len(found.tokens[0].top) == engine.shape.vocab_size


@given(lengths=st.lists(st.integers(1, 40), max_size=30), most=st.integers(1, 50))
def test_every_token_is_read_once_and_in_order(lengths: list[int], most: int) -> None:
    together = packs(lengths, most)
    assert sorted(i for pack in together for i in pack) == list(range(len(lengths)))
    for pack in together:
        read = dict.fromkeys(pack, 0)
        for parts in passes(pack, lengths, most):
            assert 0 < sum(end - start for _, start, end in parts) <= most
            for i, start, end in parts:
                assert start == read[i]
                read[i] = end
        assert read == {i: lengths[i] for i in pack}
