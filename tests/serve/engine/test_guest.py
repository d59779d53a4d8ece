"""Foreign architectures: transformers' own tokens, whatever the company, the chunks, the drafts and the interruptions."""

from __future__ import annotations

import random
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from serve.engine.batch import Batch
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.guest import GuestRunner
from serve.engine.request import Request, Sampling
from serve.engine.snapshot import Snapshot
from tests.oracle import Oracle

HYBRID = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
MAMBA2 = {"mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
CASES: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "GPTNeoX": {"num_attention_heads": 4, "intermediate_size": 96, "max_position_embeddings": 128},
    "OPT": {"num_attention_heads": 4, "ffn_dim": 96, "max_position_embeddings": 128, "word_embed_proj_dim": 48},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Falcon": {"num_attention_heads": 4},
    "Mpt": {"d_model": 48, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "Mamba": {"state_size": 8},
    "Mamba2": {"state_size": 8, "num_heads": 6, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    "Rwkv": {"attention_hidden_size": 48, "intermediate_size": 96, "context_length": 128},
    "RecurrentGemma": {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "lru_width": 48,
        "attention_window_size": 16,
    },
    "Bamba": HYBRID | MAMBA2 | {"num_hidden_layers": 3, "attn_layer_indices": [1]},
    "Jamba": HYBRID | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "mamba_d_state": 8},
    "Lfm2": HYBRID | {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
}
WHOLE_ONLY = {"Mamba", "RecurrentGemma", "Jamba"}
"""Modules that in transformers 5.23 forget what they had when they are given several tokens."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Path]:
    """A small random model of each architecture, saved with the tiny tokenizer."""
    import transformers

    made = {}
    for name, fields in CASES.items():
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(1)
        common = {"vocab_size": 400, "hidden_size": 48, "num_hidden_layers": 2, "initializer_range": 0.2}
        special = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 3}
        module = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**common | special | fields))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        module.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_model_dir / file, folder)
        made[name] = folder
    return made


def load(folder: Path, **fields: Any) -> Engine:
    return Engine.load(folder, EngineConfig(**{"dtype": "float64", "block_size": 4, "num_blocks": 400, "max_sequences": 5, **fields}))


def make_prompts(seed: int = 0) -> list[list[int]]:
    """Repetitive ones, so that drafts hold now and then; two of equal length."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(4, 400) for _ in range(length)] * times for length, times in ((3, 7), (2, 4), (17, 1), (1, 1), (4, 2))]
    assert len(prompts[1]) == len(prompts[4])
    return prompts


def theirs(folder: Path, prompts: list[list[int]], num_tokens: int) -> list[tuple[int, ...]]:
    """What transformers' own generate gives for each prompt, greedily."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    out = []
    for prompt in prompts:
        tokens = torch.tensor([prompt])
        ids = module.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=num_tokens, do_sample=False, pad_token_id=3)
        out.append(tuple(ids[0, len(prompt) :].tolist()))
    return out


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_generate(name: str, folders: dict[str, Path]) -> None:
    prompts, greedy = make_prompts(), Sampling(temperature=0, max_tokens=24)
    expected = theirs(folders[name], prompts, 24)
    for fields in ({"draft": "off"}, {}, {"max_tokens_per_step": 7}, {"num_blocks": 13}):
        engine = load(folders[name], **fields)
        assert isinstance(engine.runner, GuestRunner)
        assert engine.runner.can_draft != (name in WHOLE_ONLY)
        assert [done.tokens for done in engine.generate(prompts, greedy)] == expected, fields
        assert engine.stats()["held_blocks"] == 0
        assert not engine.runner._states, "a finished request left its state behind"
        assert bool(engine.stats()["preemptions"]) == ("num_blocks" in fields)


@pytest.mark.parametrize("name", sorted(CASES.keys() - WHOLE_ONLY))
def test_drafts_that_hold_or_fall_change_nothing(name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, rng = make_prompts(), random.Random(1)
    engine = load(folders[name], draft="off")
    sampling = [Sampling(temperature=0.8 * (i % 2), seed=i, max_tokens=24, ignore_eos=True) for i in range(len(prompts))]
    expected = [done.tokens for done in engine.generate(prompts, sampling)]
    answers = {tuple(prompt): (*prompt, *tokens) for prompt, tokens in zip(prompts, expected, strict=True)}
    monkeypatch.setattr(Engine, "_drafter", lambda _, request: Oracle(answers[request.prompt], rng))
    monkeypatch.setattr(Engine, "_verify_cost", lambda _: 0.0)  # whether or not it pays here
    assert [done.tokens for done in engine.generate(prompts, sampling)] == expected
    stats = engine.stats()
    assert 20 < stats["accepted"] < stats["drafted"]


@pytest.mark.parametrize("name", ["GPT2", "Mamba2", "RecurrentGemma"])
def test_a_step_that_fails_when_states_have_moved_on_is_computed_again(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, prompts = load(folders[name]), make_prompts()
    sampling = Sampling(temperature=0, max_tokens=12, ignore_eos=True)
    expected = [list(done.tokens) for done in engine.generate(prompts, sampling)]
    run, found = engine.runner.run, [list[int]() for _ in prompts]

    def fail(batch: Batch) -> torch.Tensor:
        run(batch)
        raise MemoryError("out of memory")

    for i, prompt in enumerate(prompts):
        engine.add(Request(id=str(i), prompt=tuple(prompt), sampling=sampling))
    for moment in range(200):
        monkeypatch.setattr(engine.runner, "run", fail if moment % 3 == 0 else run)
        with pytest.raises(MemoryError) if moment % 3 == 0 else nullcontext():
            for emission in engine.step():
                found[int(emission.request_id)] += emission.tokens
        engine.check()
        if not engine.has_work:
            break
    assert found == expected


@pytest.mark.parametrize("name", ["GPT2", "Mamba", "Mamba2", "RecurrentGemma"])
def test_a_request_goes_on_in_another_engine(name: str, folders: dict[str, Path]) -> None:
    prompt, sampling = tuple(make_prompts()[0]), Sampling(temperature=0.8, seed=3, max_tokens=20, ignore_eos=True)
    one, other = load(folders[name]), load(folders[name], max_tokens_per_step=6)
    expected = one.generate([prompt], sampling)[0].tokens
    one.add(Request(id="moved", prompt=prompt, sampling=sampling))
    while not one.snapshot("moved").emitted[5:]:
        one.step()
    carried = Snapshot.from_json(one.snapshot("moved").to_json()).request()
    one.cancel("moved")
    assert not one.runner._states
    other.add(carried)
    tokens = list(carried.emitted)
    while other.has_work:
        tokens += [token for emission in other.step() for token in emission.tokens]
    assert tuple(tokens) == expected


def test_sequences_ride_together(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any lengths where there is KV alone or none at all, of equal lengths otherwise."""
    widths: dict[str, set[int]] = {}
    for name in ("GPT2", "Mamba", "Bamba", "Rwkv"):
        engine = load(folders[name], draft="off")
        call = type(engine.runner.model).__call__

        def counted(self: Any, tokens: torch.Tensor, *args: Any, name: str = name, call: Any = call, **kwargs: Any) -> Any:
            widths.setdefault(name, set()).add(len(tokens))
            return call(self, tokens, *args, **kwargs)

        monkeypatch.setattr(type(engine.runner.model), "__call__", counted)
        engine.generate(make_prompts(), Sampling(temperature=0, max_tokens=6, ignore_eos=True))
        monkeypatch.undo()
    assert widths == {"GPT2": {1, 5}, "Mamba": {1, 5}, "Bamba": {1, 2}, "Rwkv": {1}}


def test_logits_and_hidden_states_are_the_modules(folders: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    tokens = list(range(5, 30))
    for name in ("GPT2", "Mamba"):
        module = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float64).eval()
        with torch.no_grad():
            out = module(torch.tensor([tokens]), output_hidden_states=True)
        engine = load(folders[name])
        torch.testing.assert_close(engine.logits(tokens), out.logits[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(engine.runner.hidden(tokens), out.hidden_states[-1][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["GPT2", "Bamba", "Rwkv", "RecurrentGemma"])
def test_texts_are_scored_and_embedded_side_by_side(name: str, folders: dict[str, Path]) -> None:
    """Padded behind where the module takes a batch, one by one where it does not."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float64).eval()
    engine, texts = load(folders[name]), [list(range(4 + n, 4 + 3 * n)) for n in (1, 9, 4, 7)]
    for text, found in zip(texts, engine.score(texts), strict=True):
        with torch.no_grad():
            table = module(torch.tensor([text])).logits[0].log_softmax(-1)
        expected = table[:-1].gather(-1, torch.tensor(text[1:])[:, None]).flatten()
        torch.testing.assert_close(torch.tensor([t.logprob for t in found.tokens], dtype=torch.float64), expected, rtol=0, atol=1e-6)
    for pooling in ("mean", "last"):
        embeddings = engine.embed(texts, pooling=pooling, normalize=False)
        states = [engine.runner.hidden(text) for text in texts]
        expected = torch.stack([s.mean(0) if pooling == "mean" else s[-1] for s in states])
        torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-6)


def test_refusals_are_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["GPT2"], tmp_path / "odd")
    config = tmp_path / "odd" / "config.json"
    config.write_text(config.read_text().replace('"gpt2"', '"gpt17"').replace("GPT2LMHeadModel", "GPT17LMHeadModel"))
    with pytest.raises(ValueError, match=r"odd is a GPT17LMHeadModel, which neither the lean decoder nor transformers .* runs") as refused:
        load(tmp_path / "odd")
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"adapters: .* merge the adapter"):
        load(folders["GPT2"], adapters=("one=somewhere",))
    with pytest.raises(ValueError, match="max_length: 4096 is beyond the 128 tokens"):
        load(folders["GPT2"], max_length=4096)
    config.write_text((folders["GPT2"] / "config.json").read_text().replace('"n_layer": 2', '"n_layer": 3'))
    with pytest.raises(ValueError, match=r"runs here: its weights lack transformer\.h\.2\.") as refused:
        load(tmp_path / "odd")
    assert "\n" not in str(refused.value)
    assert load(folders["Mamba"], max_length=100_000).max_length == 100_000, "it sets no limit itself"
