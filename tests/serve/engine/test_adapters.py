"""LoRA adapters: peft's logits for each, and in one batch the very tokens that each request gets alone."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve.engine.adapters import AdapterSet
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.lora import Place
from serve.engine.model import Model
from serve.engine.native.library import refusal
from serve.engine.native.runner import NativeRunner
from serve.engine.request import Request, Sampling
from serve.engine.snapshot import Snapshot

ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "queries": {"r": 6, "lora_alpha": 10, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "patterned": {
        "r": 4,
        "target_modules": r".*layers\.1\.(self_attn\.(k|o)_proj|mlp\.(gate|down)_proj)",
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {r"layers\.1\.mlp\.down_proj": 20},
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Path]:
    """Adapters of the tiny model as peft saves them, with updates that change the tokens."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = {}
    for seed, (name, fields) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), LoraConfig(task_type="CAUSAL_LM", **fields))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.2)
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
    return made


def load(model_dir: Path, folders: dict[str, Path], **fields: Any) -> Engine:
    named = tuple(f"{name}={folder}" for name, folder in folders.items())
    return Engine.load(model_dir, EngineConfig(**{"dtype": "float64", "block_size": 4, "num_blocks": 400, "adapters": named, **fields}))


def first_logits(engine: Engine, prompt: list[int], adapter: str) -> torch.Tensor:
    """What the step after the prompt draws from."""
    engine.add(Request(id="probe", prompt=tuple(prompt), adapter=adapter, sampling=Sampling(max_tokens=1)))
    seen: list[torch.Tensor] = []
    run = engine.runner.run
    engine.runner.run = lambda batch: seen.append(run(batch)) or seen[-1]  # type: ignore[method-assign]
    while engine.has_work:
        engine.step()
    del engine.runner.run  # type: ignore[method-assign]
    return seen[-1][-1]


@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_are_pefts_merged_and_unmerged(name: str, folders: dict[str, Path], tiny_model_dir: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    prompt = torch.randint(4, 400, (30,), generator=torch.Generator().manual_seed(1)).tolist()
    engine = load(tiny_model_dir, folders, dtype="float32")
    ours, plain = first_logits(engine, prompt, name), first_logits(engine, prompt, "")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    with torch.no_grad():
        torch.testing.assert_close(plain, base(torch.tensor([prompt])).logits[0, -1], rtol=0, atol=1e-4)
        theirs = PeftModel.from_pretrained(base, folders[name]).eval()
        unmerged = theirs(torch.tensor([prompt])).logits[0, -1]
        merged = theirs.merge_and_unload()(torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(ours, unmerged, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours, merged, rtol=0, atol=1e-4)
    assert float((ours - plain).abs().max()) > 0.1, "the adapter was not put to the test"


def make_requests(seed: int) -> list[Request]:
    """The same few prompts under all adapters, so that a prefix shared across them would show."""
    rng = random.Random(seed)
    prompts = [tuple(rng.randrange(4, 400) for _ in range(3)) * 5, tuple(rng.randrange(4, 400) for _ in range(11))]
    sampling = [Sampling(temperature=0.7 * (i % 2), seed=i, max_tokens=12, ignore_eos=True) for i in range(2)]
    cases = [(prompt, how, name) for prompt in prompts for how in sampling for name in ("", *ADAPTERS)]
    return [Request(id=str(i), prompt=p, sampling=how, adapter=name) for i, (p, how, name) in enumerate(cases)]


def run(engine: Engine, requests: list[Request]) -> dict[str, tuple[int, ...]]:
    outcomes: dict[str, tuple[int, ...]] = {request.id: () for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for emission in engine.step():
            outcomes[emission.request_id] += emission.tokens
    return outcomes


@pytest.mark.parametrize("fields", [{}, {"max_tokens_per_step": 18}, {"num_blocks": 30}], ids=["roomy", "chunked", "tiny pool"])
def test_a_mixed_batch_gives_each_request_its_own_tokens(fields: dict[str, Any], folders: dict[str, Path], tiny_model_dir: Path) -> None:
    requests = make_requests(3)
    expected: dict[str, tuple[int, ...]] = {}
    for name in ("", *ADAPTERS):
        single = load(tiny_model_dir, {k: v for k, v in folders.items() if k == name}, draft="off", prefix_cache=False, max_sequences=1)
        expected |= run(single, [request for request in requests if request.adapter == name])
    engine = load(tiny_model_dir, folders, **fields)
    assert run(engine, requests) == expected
    assert run(engine, requests[::-1]) == expected, "with everything in the prefix cache"
    assert len({expected[str(i)] for i in range(4)}) == 4, "the adapters give the same tokens, so nothing was tested"
    assert engine.stats()["cached_tokens"] > 0


@pytest.mark.skipif(refusal() is not None, reason="our own kernels do not run here")
def test_on_our_own_kernels_company_changes_no_bit(folders: dict[str, Path], tiny_model_dir: Path) -> None:
    """In bfloat16: drafted, chunked, beside other adapters and beside none; and the matrices are in memory once."""
    fields = {"dtype": "bfloat16", "block_size": 16}
    requests = make_requests(5)
    one = load(tiny_model_dir, folders, draft="off", prefix_cache=False, max_sequences=1, **fields)
    expected = {request.id: run(one, [request])[request.id] for request in requests}
    for changes in ({}, {"max_tokens_per_step": 18}):
        engine = load(tiny_model_dir, folders, **fields, **changes)
        assert run(engine, requests) == expected
    runner = engine.runner
    assert isinstance(runner, NativeRunner)
    pieces = [product for layer in runner._piecewise.model._layers for product in (layer._qkv, layer._out)]
    assert all(any(piece is kept for kept in runner.model._kept) for piece in pieces), "the model is in memory twice"


def test_adapters_come_and_go_while_requests_run(folders: dict[str, Path], tiny_model_dir: Path) -> None:
    engine = load(tiny_model_dir, {})
    request = make_requests(0)[1]
    with pytest.raises(ValueError, match="adapter: 'all' is not loaded; loaded: none"):
        engine.add(request)
    engine.load_adapter("all", folders["all"])
    with pytest.raises(ValueError, match="'all' is loaded already"):
        engine.load_adapter("all", folders["queries"])
    engine.add(request)
    engine.step()
    with pytest.raises(ValueError, match="in use by 1 live requests"):
        engine.unload_adapter("all")
    moved = Snapshot.from_json(engine.snapshot(request.id).to_json()).request()
    assert moved.adapter == "all"
    engine.cancel(request.id)
    engine.unload_adapter("all")
    with pytest.raises(ValueError, match="'all' is not loaded"):
        engine.unload_adapter("all")
    other = load(tiny_model_dir, folders)
    assert run(other, [request])[request.id] == moved.emitted + run(other, [moved])[request.id]


def test_the_same_name_with_other_weights_shares_no_prefix(folders: dict[str, Path], tiny_model_dir: Path) -> None:
    engine, request = load(tiny_model_dir, {}), make_requests(1)[1]
    outcomes = []
    for name in ("all", "queries", "all"):
        engine.load_adapter("all", folders[name])
        before = engine.stats()["cached_tokens"]
        outcomes.append((run(engine, [request])[request.id], engine.stats()["cached_tokens"] - before))
        engine.unload_adapter("all")
    assert outcomes[0][0] == outcomes[2][0] != outcomes[1][0]
    assert [cached > 0 for _, cached in outcomes] == [False, False, True], "the third finds what the first left"


def test_a_step_without_adapters_costs_nothing(folders: dict[str, Path], tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, given = load(tiny_model_dir, folders), []
    forward = Model.forward
    monkeypatch.setattr(Model, "forward", lambda self, *args: given.append(args[4]) or forward(self, *args))
    run(engine, [request for request in make_requests(0) if not request.adapter])
    assert given
    assert set(given) == {None}


def test_rows_of_a_step() -> None:
    """Spans of one adapter that touch are one slice; others are gathered."""
    places = {"m": Place(layer=0, product="qkv", first=2, num_rows=3, num_columns=4)}
    adapters = AdapterSet(places, torch.float64)
    assert adapters.step([("", 3), ("", 2)]) is None
    adapters._loaded = {"a": object(), "b": object()}  # type: ignore[dict-item]
    step = adapters.step([("a", 2), ("a", 1), ("", 2), ("b", 3), ("a", 1)])
    assert step is not None
    (_, of_a), (_, of_b) = step.rows_of
    assert of_a.tolist() == [0, 1, 2, 5 + 3]
    assert of_b == slice(5, 8)


def changed(folder: Path, to: Path, tensors: dict[str, torch.Tensor] | None = None, **fields: Any) -> Path:
    shutil.copytree(folder, to)
    file = to / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    if tensors is not None:
        save_file(load_file(to / "adapter_model.safetensors") | tensors, to / "adapter_model.safetensors")
    return to


@pytest.mark.parametrize(
    ("fields", "tensors", "complaint"),
    [
        ({"use_dora": True}, None, "uses DoRA; merge it"),
        ({"modules_to_save": ["lm_head"]}, None, r"replaces whole modules \(modules_to_save\)"),
        ({"bias": "all"}, None, r"trains biases \(bias=all\)"),
        ({"peft_type": "IA3"}, None, "is of type IA3"),
        ({}, {"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64)}, "changes lm_head.lora_A.weight, which"),
        ({}, {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 60)}, "q_proj does not fit this model"),
    ],
)
def test_what_cannot_run_side_by_side_is_refused(
    fields: dict[str, Any],
    tensors: dict[str, torch.Tensor] | None,
    complaint: str,
    folders: dict[str, Path],
    tiny_model_dir: Path,
    tmp_path: Path,
) -> None:
    engine = load(tiny_model_dir, {})
    with pytest.raises(ValueError, match=complaint) as refused:
        engine.load_adapter("odd", changed(folders["all"], tmp_path / "odd", tensors, **fields))
    assert "\n" not in str(refused.value)


def test_broken_folders_and_settings_are_refused(folders: dict[str, Path], tiny_model_dir: Path, tmp_path: Path) -> None:
    engine = load(tiny_model_dir, {})
    with pytest.raises(ValueError, match=r"has no adapter_config\.json; save"):
        engine.load_adapter("none", tmp_path)
    shutil.copytree(folders["all"], tmp_path / "torn")
    (tmp_path / "torn" / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="torn cannot be read"):
        engine.load_adapter("torn", tmp_path / "torn")
    with pytest.raises(ValueError, match="adapters: 'all' is not name=folder"):
        EngineConfig(adapters=("all",))
    with pytest.raises(ValueError, match="a name is given twice"):
        EngineConfig(adapters=("a=x", "a=y"))
