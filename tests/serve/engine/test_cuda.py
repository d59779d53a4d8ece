"""Steps of a fixed form give the answers of steps of any form; what fits no form is left alone. (Graphs themselves need a GPU.)"""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from serve.engine import cuda
from serve.engine.attention import FEW
from serve.engine.config import EngineConfig
from serve.engine.cuda import DecodeGraphs, Form
from serve.engine.engine import Engine
from serve.engine.request import Completion, Sampling
from serve.engine.runner import Runner


def answers(engine: Engine) -> list[Completion]:
    rng = random.Random(5)
    prompts = [[rng.randrange(4, 400) for _ in range(3)] * rng.randrange(2, 14) for _ in range(7)]
    sampling = [Sampling(max_tokens=rng.randrange(4, 40), temperature=rng.choice([0.0, 0.9]), seed=i, ignore_eos=True) for i in range(7)]
    return engine.generate(prompts, sampling)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_steps_of_a_fixed_form_are_the_same_steps(tiny_model_dir: Path, kv_dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_verify_cost", lambda self: 0.0)
    config = EngineConfig(dtype="float64", block_size=4, num_blocks=60, max_sequences=5, max_tokens_per_step=40, kv_dtype=kv_dtype)
    plain, formed = (Engine.load(tiny_model_dir, config) for _ in range(2))
    graphs = use_forms(formed)._graphs
    assert graphs is not None
    assert [c.tokens for c in answers(formed)] == [c.tokens for c in answers(plain)]
    met = set(graphs._frames)
    assert {form.queries for form in met} >= {1, 17}, "plain steps and drafts"
    assert len({form.sequences for form in met}) > 2
    assert len({form.blocks for form in met}) > 1


def test_windows_in_fixed_forms(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    MistralForCausalLM(
        MistralConfig(**sizes, num_key_value_heads=2, max_position_embeddings=256, sliding_window=9, initializer_range=0.2)
    ).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model_dir / name).read_bytes())
    config = EngineConfig(dtype="float64", block_size=4, num_blocks=40, max_sequences=5)
    plain, formed = (Engine.load(tmp_path, config) for _ in range(2))
    use_forms(formed)
    assert [c.tokens for c in answers(formed)] == [c.tokens for c in answers(plain)]


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_what_former_holders_left_in_their_blocks_is_never_seen(tiny_model_dir: Path, kv_dtype: str) -> None:
    config = EngineConfig(dtype="float64", block_size=4, num_blocks=60, max_sequences=5, kv_dtype=kv_dtype)
    plain, formed = (Engine.load(tiny_model_dir, config) for _ in range(2))
    cache = use_forms(formed).cache
    for layer in cache.scales or cache.layers:
        layer[:, :, :-1] = float("nan")  # all but the block that belongs to nobody
    assert [c.tokens for c in answers(formed)] == [c.tokens for c in answers(plain)]


@pytest.mark.parametrize("num_drafted", [0, 3])
def test_a_sequence_that_overflows_spoils_nobody_elses_numbers(tiny_model_dir: Path, num_drafted: int) -> None:
    """Padding beside it computes with its keys; what that gives must not stay where others' padding is read."""
    engine = Engine.load(tiny_model_dir, EngineConfig(dtype="float64", block_size=4, num_blocks=60))
    runner = use_forms(engine)
    plain = Runner(runner.model, runner.cache, runner.adapters)
    sound, spoilt = (decoding([prompt] * 9, blocks) for prompt, blocks in ((5, [1, 2, 3, 4]), (7, [11, 12, 13, 14])))
    plain.compute([step(sound, 0, 8), step(spoilt, 0, 8)])
    expected = plain.compute([step(sound, 8, 9)])
    for layer in runner.cache.layers:
        layer[:, :, 11] = float("nan")
    sound.tokens += [5] * 3
    for _ in range(2):  # what the first step left would be read in the second
        logits = runner.compute([step(sound, 8, 9 + num_drafted, [5] * num_drafted), step(spoilt, 8, 9)])
        assert torch.allclose(logits[0], expected[0])
        assert logits[: 1 + num_drafted].isfinite().all()
        assert logits[-1].isnan().all(), "the law was not put to the test"


def use_forms(engine: Engine) -> Runner:
    """Let the engine take steps of fixed forms."""
    runner = engine.runner
    assert isinstance(runner, Runner)
    engine.runner = Runner(runner.model, runner.cache, runner.adapters, DecodeGraphs(runner.model, runner.cache, capture=False))
    return engine.runner


def decoding(tokens: list[int], blocks: list[int]) -> SimpleNamespace:
    return SimpleNamespace(tokens=tokens, blocks=blocks, num_behind=0, request=SimpleNamespace(adapter=""))


def step(sequence: SimpleNamespace, start: int, end: int, draft: list[int] | None = None) -> SimpleNamespace:
    return SimpleNamespace(sequence=sequence, start=start, end=end, tokens=sequence.tokens[start:end], draft=draft or [], samples=True)


def chunk(length: int, num_blocks: int, adapter: str = "") -> SimpleNamespace:
    sequence = SimpleNamespace(request=SimpleNamespace(adapter=adapter), blocks=[0] * num_blocks)
    return SimpleNamespace(start=0, end=length, sequence=sequence)


def test_the_smallest_form_around_a_step() -> None:
    assert Form.around([chunk(1, 3)]) == Form(1, 1, cuda.LEAST_BLOCKS)
    assert Form.around([chunk(1, 3), chunk(5, 17), chunk(2, 1)]) == Form(4, 8, 32)
    assert Form.around([chunk(FEW, 8)] * 5) == Form(8, FEW, 8)
    assert Form.around([]) is None
    assert Form.around([chunk(FEW + 1, 3)]) is None, "a prompt"
    assert Form.around([chunk(1, 3, adapter="a")]) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_graphs_answer_as_the_cpu_does(tiny_model_dir: Path) -> None:
    cpu, gpu = (Engine.load(tiny_model_dir, EngineConfig(dtype="float64", device=device)) for device in ("cpu", "cuda"))
    assert [c.tokens for c in answers(gpu)] == [c.tokens for c in answers(cpu)]
