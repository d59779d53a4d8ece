"""The native stack computes what model.py computes, with everything but weights and KV in float32, whatever the family's oddities."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from serve.engine.attention import KvCache, Scores, Span, StepAttention
from serve.engine.families import read_shape
from serve.engine.model import Model
from serve.engine.native.cache import NativeCache
from serve.engine.native.decoder import NativeDecoder, Pass, supported
from serve.engine.native.library import refusal
from serve.engine.shape import Shape
from serve.engine.weights import Weights, read_config
from train.compress.calibrate import weight_of
from train.compress.candidates import degraded
from train.compress.export import export
from train.compress.options import option
from train.compress.quantize import load_dense

pytestmark = pytest.mark.skipif(refusal() is not None, reason=f"native kernels: {refusal()}")

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 3,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "tied, biased": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "window": ("Mistral", {"sliding_window": 37}),
    "query and key norms": ("Qwen3", {}),
    "part of a head turned": ("Phi3", {"partial_rotary_factor": 0.5, "head_dim": None, "hidden_size": 128}),
    "four norms, caps, windows in turn": ("Gemma2", {"sliding_window": 21, "query_pre_attn_scalar": 24, "tie_word_embeddings": True}),
    "two rotary embeddings": ("Gemma3", {"sliding_window": 21, "sliding_window_pattern": 3, "tie_word_embeddings": True}),
    "multipliers": ("Granite", {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.4}),
    "layers that do not turn": ("SmolLM3", {"no_rope_layer_interval": 2}),
}


def save(folder: Path, family: str, **changes: Any) -> None:
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    sizes = {key: value for key, value in {"tie_word_embeddings": False, **SIZES, **changes}.items() if value is not None}
    model = getattr(transformers, f"{family}ForCausalLM")(config(**sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.bfloat16().save_pretrained(folder)


def load(folder: Path) -> tuple[Shape, NativeDecoder, Model]:
    """The native decoder, and the torch model with float32 arithmetic on the same bf16 weights."""
    config = read_config(folder)
    shape = read_shape(config, str(folder))
    decoder = NativeDecoder(shape, Weights(folder, config, torch.bfloat16, CPU, native=True), 256)
    return shape, decoder, Model(shape, Weights(folder, config, torch.float32, CPU), torch.float32, CPU, 256)


def make_cache(shape: Shape, num_blocks: int = 40, quantised: bool = False) -> NativeCache:
    return NativeCache(shape.num_layers, shape.num_kv_heads, shape.head_dim, num_blocks, 16, quantised)


def expected(model: Model, tokens: list[int]) -> Tensor:
    """Logits of one pass whose keys and values are rounded to bf16."""
    shape = model.shape
    cache = KvCache(shape.num_layers, shape.num_kv_heads, shape.head_dim, 20, 16, torch.float32, CPU)
    step = StepAttention(cache, [Span(0, len(tokens), range(20))], shape.windows, Scores(shape.attention_scale, shape.attention_soft_cap))
    return model.forward(torch.tensor(tokens), torch.arange(len(tokens)), lambda i, q, kv: step(i, q, kv.bfloat16().float()))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_model_in_float32(case: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    save(tmp_path, family, **changes)
    shape, decoder, model = load(tmp_path)
    assert supported(shape)
    rng = random.Random(7)
    tokens = [rng.randrange(400) for _ in range(150)]
    blocks = rng.sample(range(40), 10)
    whole = Pass()
    whole.add(0, tokens, blocks, 150)
    logits = decoder.run(whole, make_cache(shape))
    error = (logits - expected(model, tokens)).abs() / logits.std()
    assert error[0].max() < 1e-5
    assert error.mean() < 4e-4
    assert error.max() < 0.02, "a key that rounds the other way moves some logits a little, nothing more"
    assert torch.equal(in_parts(decoder, make_cache(shape), tokens, blocks, rng), logits)


def in_parts(decoder: NativeDecoder, cache: NativeCache, tokens: list[int], blocks: list[int], rng: random.Random) -> Tensor:
    """The same text in pieces, in the company of another one."""
    others = [b for b in range(cache.num_blocks) if b not in blocks]
    at, rows = 0, []
    while at < len(tokens):
        n = min(rng.choice([1, 1, 3, 40]), len(tokens) - at)
        work = Pass()
        first = rng.random() < 0.5
        if first:
            work.add(at, tokens[at : at + n], blocks, n)
        work.add(at, [5] * 3, others, 1)
        if not first:
            work.add(at, tokens[at : at + n], blocks, n)
        logits = decoder.run(work, cache)
        rows.append(logits[:n] if first else logits[1:])
        at += n
    return torch.cat(rows)


def test_states_are_what_the_head_reads(tmp_path: Path) -> None:
    save(tmp_path, "Llama")
    shape, decoder, model = load(tmp_path)
    work = Pass()
    work.add(0, [4, 5, 6, 7], [2], 3)
    states, logits = decoder.run(work, make_cache(shape), states=True), decoder.run(work, make_cache(shape))
    assert states.shape == (3, 64)
    torch.testing.assert_close(model._head(states), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("embedding", ["int8", "int8-g32", "int4", "int5-g32", "sparse50-magnitude"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_compressed_embedding_is_looked_up_as_the_model_does(tied: bool, embedding: str, tmp_path: Path) -> None:
    save(tmp_path / "dense", "Llama", tie_word_embeddings=tied)
    dense = load_dense(tmp_path / "dense")
    name = "model.embed_tokens"
    export(dense, {name: degraded(weight_of(dense, name), option(embedding), None)}, tmp_path / "dense", tmp_path / "compressed")
    shape, decoder, model = load(tmp_path / "compressed")
    tokens = list(range(100))
    whole = Pass()
    whole.add(0, tokens, range(10), 100)
    logits = decoder.run(whole, make_cache(shape))
    error = (logits - expected(model, tokens)).abs() / logits.std()
    assert error[0].max() < (1e-3 if tied else 1e-5), "an int8 output layer reads states in 16 bits"
    assert error.mean() < 4e-4


def test_what_the_stack_does_not_know_is_known_beforehand(tmp_path: Path) -> None:
    for family, changes in {"Mixtral": {}, "Olmo2": {}, "StableLm": {"use_parallel_residual": True}, "Starcoder2": {}}.items():
        shutil.rmtree(tmp_path / family, ignore_errors=True)
        save(tmp_path / family, family, **{"hidden_size": 128, "head_dim": None, **changes})
        assert not supported(read_shape(read_config(tmp_path / family), family)), family


@pytest.mark.parametrize("fewer", [{"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true", "OMP_NUM_THREADS": "64"}])
def test_fewer_threads_than_asked_for_do_the_same(fewer: dict[str, str], tiny_model_dir: Path) -> None:
    """OpenMP may give less than a team: nobody waits for those that never come."""
    code = (
        "import sys; from serve.engine.engine import Engine; from serve.engine.config import EngineConfig; "
        "engine = Engine.load(sys.argv[1], EngineConfig(dtype='bfloat16', kernels='native')); runner = engine.runner; "
        "runner.model._threads = 64; tokens = list(range(4, 44)); print(runner.logits(tokens).double().sum().item()); "
        "runner._piecewise.logits(tokens)"
    )

    def printed(environment: dict[str, str]) -> str:
        command = [sys.executable, "-c", code, str(tiny_model_dir)]
        return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=100).stdout

    assert printed({"OMP_NUM_THREADS": "2"} | fewer) == printed({"OMP_NUM_THREADS": "2"})
