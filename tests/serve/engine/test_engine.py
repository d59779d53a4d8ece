"""The engine as its callers see it: requests in, emissions out, mistakes refused in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from serve.engine.batch import Batch
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.native.library import native
from serve.engine.request import Completion, Emission, Request, Sampling

PROMPT = "def add(left, right):\n    return"
GREEDY = Sampling(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Engine:
    return Engine.load(tiny_model_dir, EngineConfig(dtype="float64"))


def drain(engine: Engine) -> dict[str, list[Emission]]:
    """Step until nothing is left; the emissions by request."""
    found: dict[str, list[Emission]] = {}
    while engine.has_work:
        for emission in engine.step():
            found.setdefault(emission.request_id, []).append(emission)
    return found


def test_greedy_is_transformers_greedy(tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    engine = Engine.load(tiny_model_dir, EngineConfig(dtype="float32"))
    prompt = engine.tokenizer.encode(PROMPT)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    theirs = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :].tolist()
    (ours,) = engine.generate([prompt], replace(GREEDY, ignore_eos=False))
    assert list(ours.tokens) == theirs


def test_generate_keeps_the_order_and_counts(engine: Engine) -> None:
    steps: list[int] = []
    prompts = [PROMPT, [5, 6, 7], "The tern"]
    completions = engine.generate(prompts, [replace(GREEDY, max_tokens=n) for n in (3, 20, 9)], progress=steps.append)
    assert [len(c.tokens) for c in completions] == [3, 20, 9]
    assert sum(steps) == 32
    assert [c.finish_reason for c in completions] == ["length"] * 3
    assert completions[1].usage == {"prompt_tokens": 3, "completion_tokens": 20, "total_tokens": 23}
    assert completions[0].text == engine.tokenizer.decode(completions[0].tokens)
    assert not engine.has_work


def test_generate_beside_other_requests_is_refused(engine: Engine) -> None:
    engine.add(Request(id="a", prompt=(5, 6), sampling=GREEDY))
    with pytest.raises(ValueError, match="generate: other requests are under way; step until they have ended"):
        engine.generate([PROMPT], GREEDY)
    engine.step()
    engine.cancel("a")
    with pytest.raises(ValueError, match="under way"):  # its end is still to be told
        engine.generate([PROMPT], GREEDY)
    assert [e.finish_reason for e in engine.step()] == ["cancelled"]
    assert len(engine.generate([PROMPT], GREEDY)) == 1


def test_logits_agree_with_what_generate_emits(engine: Engine) -> None:
    (completion,) = engine.generate([[9, 8, 7]], GREEDY)
    logits = engine.logits([9, 8, 7, *completion.tokens])
    assert logits[2:-1].argmax(-1).tolist() == list(completion.tokens)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_logits_of_a_long_text_take_no_longer_pass_than_a_step(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """What a pass needs is kept for the next, so a pass over thousands of tokens would never be given back."""
    engine = Engine.load(tiny_model_dir, EngineConfig(dtype=dtype, max_tokens_per_step=40))
    tokens = [5 + i * i % 390 for i in range(100)]
    whole, passes, read = engine.runner.logits(tokens), list[int](), engine.runner.read

    def watched(cache: Any, pieces: Any, **how: Any) -> torch.Tensor:
        passes.append(sum(len(piece.tokens) for piece in pieces))
        return read(cache, pieces, **how)

    monkeypatch.setattr(engine.runner, "read", watched)
    torch.testing.assert_close(engine.logits(tokens), whole, rtol=0, atol=1e-9 if dtype == "float64" or native("auto") else 0.1)
    assert passes == [40, 40, 20]


def test_a_stop_string_ends_the_text_before_it(engine: Engine) -> None:
    (whole,) = engine.generate([PROMPT], GREEDY)
    stop = whole.text[5:8]
    (cut,) = engine.generate([PROMPT], replace(GREEDY, stop=(stop,)))
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.find(stop)]
    assert cut.tokens == whole.tokens[: len(cut.tokens)]


def test_a_stop_token_ends_it_and_its_text_is_not_shown(engine: Engine) -> None:
    (whole,) = engine.generate([PROMPT], GREEDY)
    stop = whole.tokens[6]
    (cut,) = engine.generate([PROMPT], replace(GREEDY, stop_token_ids=(stop,)))
    end = whole.tokens.index(stop)
    assert cut.tokens == whole.tokens[: end + 1]
    assert cut.text == engine.tokenizer.decode(whole.tokens[:end])
    assert cut.finish_reason == "stop"


def test_output_ends_with_the_context(tiny_model_dir: Path) -> None:
    small = Engine.load(tiny_model_dir, EngineConfig(max_length=20))
    (completion,) = small.generate([[5] * 15], GREEDY)
    assert (len(completion.tokens), completion.finish_reason) == (5, "length")


def test_logprobs_come_with_every_token(engine: Engine) -> None:
    (completion,) = engine.generate([PROMPT], replace(GREEDY, logprobs=2))
    assert completion.logprobs is not None
    assert [p.token for p in completion.logprobs] == list(completion.tokens)
    assert all(p.top[0] == (p.token, p.logprob) for p in completion.logprobs)
    assert engine.generate([PROMPT], GREEDY)[0].logprobs is None


def test_choices_of_one_seed_differ_and_repeat(engine: Engine) -> None:
    def run() -> list[Completion]:
        for choice in range(3):
            engine.add(Request(id=str(choice), prompt=(5, 6, 7), sampling=Sampling(seed=4, max_tokens=12, ignore_eos=True), choice=choice))
        found = drain(engine)
        return [tuple(t for e in found[str(choice)] for t in e.tokens) for choice in range(3)]

    first = run()
    assert len(set(first)) == 3
    assert run() == first


def test_a_request_without_seed_gets_one_that_travels(engine: Engine) -> None:
    engine.add(Request(id="a", prompt=(5, 6), sampling=Sampling(max_tokens=4)))
    seed = engine.snapshot("a").request().sampling.seed
    assert seed is not None
    assert 0 <= seed < 2**63
    engine.cancel("a")
    drain(engine)


def test_cancel_frees_everything_and_is_told_once(engine: Engine) -> None:
    for i in range(3):
        engine.add(Request(id=str(i), prompt=tuple(range(5, 45)), sampling=GREEDY))
    engine.step()
    assert engine.stats()["held_blocks"] > 0
    assert engine.cancel("0")
    assert not engine.cancel("0")
    for i in (1, 2):
        engine.cancel(str(i))
    stats = engine.stats()
    assert (stats["held_blocks"], stats["running"], stats["waiting"]) == (0, 0, 0)
    assert stats["free_blocks"] + stats["cached_blocks"] == stats["total_blocks"]
    assert [e.finish_reason for e in engine.step()] == ["cancelled"] * 3
    assert not engine.has_work


def test_the_id_of_a_cancelled_request_is_free_once_its_end_is_told(engine: Engine) -> None:
    first, second = (Request(id="a", prompt=prompt, sampling=GREEDY) for prompt in ((5, 6), (7, 8)))
    engine.add(first)
    engine.step()
    engine.cancel("a")
    with pytest.raises(ValueError, match="id 'a' has ended, and no step has told so yet; step first"):
        engine.add(second)
    assert [(e.request_id, e.finish_reason) for e in engine.step()] == [("a", "cancelled")]
    engine.add(second)
    assert sum(len(e.tokens) for e in drain(engine)["a"]) == GREEDY.max_tokens


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_step_that_fails_loses_nothing(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    engine = Engine.load(tiny_model_dir, EngineConfig(dtype="float64", block_size=4, num_blocks=60, max_sequences=4, policy="fair"))
    requests = [Request(id=f"r{i}", prompt=tuple(range(5 + i, 40 + i)), sampling=GREEDY) for i in range(6)]
    for request in requests:
        engine.add(request)
    expected = {name: [t for e in news for t in e.tokens] for name, news in drain(engine).items()}
    run, found = engine.runner.run, {request.id: list[int]() for request in requests}

    def fail(batch: Batch) -> torch.Tensor:
        if moment == "after":
            run(batch)
        raise MemoryError("out of memory")

    for request in requests:
        engine.add(request)
    engine.cancel("r5")
    for number in range(200):
        if number % 3:
            for emission in engine.step():
                found[emission.request_id] += emission.tokens
        elif engine.scheduler.running or engine.scheduler.waiting:
            monkeypatch.setattr(engine.runner, "run", fail)
            with pytest.raises(MemoryError):
                engine.step()
            monkeypatch.setattr(engine.runner, "run", run)
            if number == 9:
                assert engine.cancel("r1")
        engine.check()
        if not engine.has_work:
            break
    assert not engine.has_work
    assert found.pop("r5") == []
    assert 0 < len(cut := found.pop("r1")) < GREEDY.max_tokens
    assert cut == expected["r1"][: len(cut)]
    assert found == {name: expected[name] for name in found}


def test_an_interrupted_generate_leaves_the_engine_idle(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(batch: Batch) -> torch.Tensor:
        raise KeyboardInterrupt

    (expected,) = engine.generate([PROMPT], GREEDY)
    monkeypatch.setattr(engine.runner, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([PROMPT] * 3, GREEDY)
    monkeypatch.undo()
    engine.check()
    assert not engine.has_work
    assert engine.generate([PROMPT], GREEDY)[0].tokens == expected.tokens


def test_finished_answers_teach_their_tenants_drafter(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.load(tiny_model_dir, EngineConfig(dtype="float64"))
    learnt: list[tuple[str, tuple[int, ...]]] = []
    monkeypatch.setattr(engine._drafters, "learn", lambda tenant, tokens: learnt.append((tenant, tokens)))
    for tenant in "ab":
        engine.add(Request(id=tenant, prompt=(5, 6), sampling=replace(GREEDY, max_tokens=4), tenant=tenant))
    engine.add(Request(id="c", prompt=(5, 6), sampling=GREEDY))
    engine.step()
    engine.cancel("c")  # no answer
    found = drain(engine)
    assert sorted(tenant for tenant, _ in learnt) == ["a", "b"]
    assert all(len(tokens) == 4 and tokens[-1:] == found[tenant][-1].tokens[-1:] for tenant, tokens in learnt)


def test_a_request_that_has_outgrown_the_context_is_not_resumed(tiny_model_dir: Path) -> None:
    large, small = (Engine.load(tiny_model_dir, EngineConfig(dtype="float64", max_length=length)) for length in (64, 16))
    large.add(Request(id="a", prompt=(5,) * 10, sampling=replace(GREEDY, stop=("no such text",))))
    for _ in range(40):
        if len(large.snapshot("a").emitted) >= 6:
            break
        large.step()
    resumed = large.snapshot("a").request()
    with pytest.raises(ValueError, match=r"emitted: with the prompt these are 1\d tokens, and the context has 16; resume it where"):
        small.add(resumed)
    assert not small.has_work
    whole = replace(resumed, emitted=resumed.emitted[:6], sampling=replace(resumed.sampling, max_tokens=6))
    small.add(whole)  # all that it asked for
    assert [(e.tokens, e.finish_reason) for e in small.step()] == [((), "length")]


def test_prefix_hits_are_counted_and_shared(tiny_model_dir: Path) -> None:
    engine = Engine.load(tiny_model_dir, EngineConfig(dtype="float64", block_size=8))
    prompt = list(range(5, 55))
    (first,) = engine.generate([prompt], GREEDY)
    (second,) = engine.generate([prompt], GREEDY)
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 48)
    assert first.tokens == second.tokens


def test_tenants_do_not_share_prefixes(tiny_model_dir: Path) -> None:
    engine = Engine.load(tiny_model_dir, EngineConfig(block_size=8))
    cached = []
    for i, tenant in enumerate(("a", "a", "b")):
        engine.add(Request(id=str(i), prompt=tuple(range(5, 55)), sampling=replace(GREEDY, max_tokens=2), tenant=tenant))
        cached.append(drain(engine)[str(i)][-1].num_cached_tokens)
    assert cached == [0, 48, 0]


def test_what_was_already_complete_is_told_and_not_continued(engine: Engine) -> None:
    engine.add(Request(id="a", prompt=(5, 6), sampling=Sampling(max_tokens=3, seed=1), emitted=(7, 8, 9)))
    (emission,) = drain(engine)["a"]
    assert (emission.tokens, emission.text, emission.finish_reason) == ((), "", "length")


@pytest.mark.parametrize(
    ("request_fields", "complaint"),
    [
        ({"prompt": (5,) * 512}, "512 tokens leave no room in the context of 512 tokens"),
        ({"prompt": (5, 400)}, "token 400 is outside the vocabulary of 400"),
        ({"prompt": (5,), "emitted": (-1,)}, "token -1 is outside"),
        ({"prompt": ()}, "has no tokens"),
        ({"prompt": (5,), "choice": -1}, "choice: -1 is negative"),
    ],
)
def test_requests_that_cannot_run_are_refused(engine: Engine, request_fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        engine.add(Request(id="bad", **request_fields))
    assert not engine.has_work


def test_an_id_in_use_is_refused(engine: Engine) -> None:
    engine.add(Request(id="a", prompt=(5,)))
    with pytest.raises(ValueError, match="id 'a' is in use"):
        engine.add(Request(id="a", prompt=(5,)))
    engine.cancel("a")
    drain(engine)


def test_a_request_that_no_pool_of_blocks_can_hold_is_refused(tiny_model_dir: Path) -> None:
    engine = Engine.load(tiny_model_dir, EngineConfig(num_blocks=2, block_size=16))
    with pytest.raises(ValueError, match="may reach 40 tokens, but the KV blocks hold 32"):
        engine.add(Request(id="a", prompt=(5,) * 20, sampling=Sampling(max_tokens=20)))


def test_one_text_is_not_taken_for_its_letters(engine: Engine) -> None:
    for read in (engine.generate, engine.embed, engine.score):
        with pytest.raises(ValueError, match="one text is given; write a list"):
            read("def f():")
    with pytest.raises(ValueError, match="sampling: 1 for 2 prompts"):
        engine.generate([[5], [6]], [GREEDY])
    assert not engine.has_work


def test_logits_of_what_the_model_cannot_read_are_refused(engine: Engine) -> None:
    for bad, complaint in (([-1], "token -1"), ([5, 400], "token 400"), ([], "0 tokens"), ([5] * 600, "600 tokens")):
        with pytest.raises(ValueError, match=complaint):
            engine.logits(bad)


def test_a_missing_snapshot_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="no live request 'nobody'"):
        engine.snapshot("nobody")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"max_tokens": 0}, "max_tokens: 0"),
        ({"temperature": -1.0}, "temperature: -1.0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"top_p": 0.0}, "top_p: 0.0"),
        ({"top_k": -1}, "top_k: -1"),
        ({"logprobs": 101}, "logprobs: 101"),
        ({"stop": ("",)}, "stop: give at most"),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Sampling(**fields)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"block_size": 0}, "block_size: 0"),
        ({"draft_order": 1}, "draft_order: 1"),
        ({"swap_bytes": -1}, "swap_bytes: -1"),
        ({"num_blocks": 3, "kv_bytes": 9}, "set only one"),
        ({"max_tokens_per_step": 4}, "max_tokens_per_step: 4 leaves no token"),
        *(
            ({name: "typo"}, f"{name}: 'typo' is unknown")
            for name in ("dtype", "device", "kernels", "kv_dtype", "policy", "preempt", "draft")
        ),
        *(({name: 2.5}, f"{name}: 2.5 is not a whole number") for name in ("block_size", "num_blocks", "max_length", "draft_max")),
        ({"max_sequences": None}, "max_sequences: None is not a whole number"),
        ({"max_step_s": float("inf")}, "max_step_s: inf"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        EngineConfig(**fields)


def without(folder: Path, copy: Path, *names: str) -> Path:
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*names))
    return copy


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [("config.json", r"has no config\.json"), ("tokenizer.json", r"has no tokenizer\.json"), ("*.safetensors", r"has no \*\.safetensors")],
)
def test_folders_that_are_no_models_are_refused(tiny_model_dir: Path, tmp_path: Path, missing: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Engine.load(without(tiny_model_dir, tmp_path / "copy", missing))
    with pytest.raises(ValueError, match="no folder"):
        Engine.load(tmp_path / "nothing")


def test_a_broken_folder_is_one_line(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = without(tiny_model_dir, tmp_path / "copy")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot read the safetensors") as caught:
        Engine.load(folder)
    assert "\n" not in str(caught.value)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="broken JSON"):
        Engine.load(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"{", b"", b"[5]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_broken_files_beside_the_weights_are_one_line(tiny_model_dir: Path, tmp_path: Path, name: str, content: bytes) -> None:
    copy = without(tiny_model_dir, tmp_path / "copy", name)
    (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^model: .*broken") as error:
        Engine.load(copy)
    assert "\n" not in str(error.value)


def test_a_config_of_another_model_is_noticed(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = without(tiny_model_dir, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"lacks the tensor model\.layers\.2"):
        Engine.load(folder)


def test_max_length_beyond_the_model_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ValueError, match="max_length: 1000 is beyond the 512 tokens"):
        Engine.load(tiny_model_dir, EngineConfig(max_length=1000))
