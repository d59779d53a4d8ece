"""The lean decoder gives transformers' logits for every family it claims, in one pass and through the engine's steps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from serve.engine.attention import Scores
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.families import FAMILIES
from serve.engine.model import Attend
from serve.engine.native.library import native
from serve.engine.request import Sampling
from serve.engine.shape import Shape

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied, biased": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama rope llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama rope linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}}),
    "llama one kv head": ("Llama", {"num_key_value_heads": 1, "head_dim": 24}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral sliding": ("Mistral", {"sliding_window": 7}),
    "ministral": ("Ministral", {"head_dim": 8, "sliding_window": 7, "layer_types": ["full_attention", *["sliding_attention"] * 2]}),
    "qwen2": ("Qwen2", {}),
    "qwen2 sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mixtral": ("Mixtral", {"num_local_experts": 5}),
    "qwen2 moe": (
        "Qwen2Moe",
        {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 28},
    ),
    "qwen3 moe": (
        "Qwen3Moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "head_dim": 16,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "olmoe": ("Olmoe", {"num_experts": 6, "num_experts_per_tok": 3}),
    "phi3": ("Phi3", {}),
    "phi3 partial": ("Phi3", {"partial_rotary_factor": 0.5, "sliding_window": 9}),
    "gemma": ("Gemma", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 16, "tie_word_embeddings": True, "sliding_window": 7, "query_pre_attn_scalar": 24, "attn_implementation": "eager"},
    ),
    "gemma3": (
        "Gemma3",
        {"head_dim": 16, "tie_word_embeddings": True, "sliding_window": 7, "query_pre_attn_scalar": 24, "sliding_window_pattern": 3},
    ),
    "granite": ("Granite", {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2}),
    "granite moe": (
        "GraniteMoe",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "num_local_experts": 5},
    ),
    "seed oss": ("SeedOss", {"head_dim": 16}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "stablelm": ("StableLm", {"use_qkv_bias": True}),
    "stablelm parallel": ("StableLm", {"use_parallel_residual": True}),
    "starcoder2": ("Starcoder2", {"sliding_window": 8, "use_bias": True}),
}


def save_model(folder: Path, family: str, tokenizer_from: Path, save_original_format: bool = True, **changes: Any) -> Any:
    """A small random model of a family, in `folder` with a tokenizer; transformers' module."""
    import transformers

    torch.manual_seed(1)
    sizes = {
        "vocab_size": 400,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.15,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 3,
    }
    config_class = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    config = config_class(**{"tie_word_embeddings": False, **sizes, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, **({} if save_original_format else {"save_original_format": False}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / name, folder)
    return model


@pytest.mark.parametrize("case", CASES)
def test_logits_are_transformers_logits(case: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    family, changes = CASES[case]
    theirs = save_model(tmp_path, family, tiny_model_dir, **changes)
    engine = Engine.load(tmp_path, EngineConfig(dtype="float32", block_size=4, max_tokens_per_step=16, max_sequences=2, draft="off"))
    tokens = torch.randint(0, 400, (50,), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(engine.logits(tokens.tolist()), their_logits(theirs, tokens), rtol=0, atol=1e-4)
    check_steps(engine, theirs, tokens[:37].tolist())


def their_logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens[None], use_cache=False).logits[0]


def check_steps(engine: Engine, theirs: Any, prompt: list[int]) -> None:
    """A prompt in chunks and a few tokens after it, over paged KV: the log-probabilities of one pass over the whole text."""
    (answer,) = engine.generate([prompt], Sampling(temperature=0, max_tokens=6, ignore_eos=True, logprobs=3))
    whole = their_logits(theirs, torch.tensor([*prompt, *answer.tokens])).log_softmax(-1)
    assert answer.logprobs is not None
    for i, (token, told) in enumerate(zip(answer.tokens, answer.logprobs, strict=True)):
        expected = whole[len(prompt) + i - 1]
        assert float(expected.max() - expected[token]) < 1e-4
        assert told.logprob == pytest.approx(float(expected[token]), abs=2e-4)


def test_every_family_is_among_the_cases() -> None:
    assert {f"{family}ForCausalLM" for family, _ in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("case", ["mixtral", "qwen2 moe", "granite moe", "phi3"])
def test_stacked_experts_are_read_as_transformers_holds_them(case: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    family, changes = CASES[case]
    theirs = save_model(tmp_path, family, tiny_model_dir, save_original_format=False, **changes)
    tokens = torch.arange(40)
    engine = Engine.load(tmp_path, EngineConfig(dtype="float32"))
    torch.testing.assert_close(engine.logits(tokens.tolist()), their_logits(theirs, tokens), rtol=0, atol=1e-4)


def attend_one_text(shape: Shape, length: int) -> Attend:
    """Attention of a text over itself."""
    scores, at = Scores(shape.attention_scale, shape.attention_soft_cap), torch.arange(length)

    def attend(layer: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        seen = (at[None] <= at[:, None]) & (at[None] > at[:, None] - (shape.windows[layer] or length))
        return scores.attend(q.transpose(0, 1)[None], *kv[:, None].unbind(), seen)[0].transpose(0, 1).reshape(length, -1)

    return attend


def test_hidden_states_are_what_the_head_reads(tmp_path: Path, tiny_model_dir: Path) -> None:
    theirs = save_model(tmp_path, "Gemma2", tiny_model_dir, **CASES["gemma2"][1])
    model = Engine.load(tmp_path, EngineConfig(dtype="float32")).runner.model
    tokens = torch.arange(30)
    attend = attend_one_text(model.shape, 30)
    with torch.no_grad():
        expected = theirs.model(tokens[None], use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(model.hidden(tokens, torch.arange(30), attend), expected, rtol=0, atol=1e-4)


def test_adapters_see_every_product_and_may_add_to_it(tiny_model_dir: Path) -> None:
    model = Engine.load(tiny_model_dir, EngineConfig(dtype="float64")).runner.model
    tokens, attend = torch.arange(9), attend_one_text(model.shape, 9)
    seen: list[tuple[int, str, tuple[int, ...], tuple[int, ...]]] = []

    def watch(layer: int, name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        seen.append((layer, name, tuple(x.shape), tuple(y.shape)))

    def silence(layer: int, name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        if name in ("out", "down"):
            y.zero_()

    plain = model.forward(tokens, tokens, attend)
    assert torch.equal(model.forward(tokens, tokens, attend, adapters=watch), plain)
    one = [("qkv", (9, 64), (9, 128)), ("out", (9, 64), (9, 64)), ("gate_up", (9, 64), (9, 256)), ("down", (9, 128), (9, 64))]
    assert seen == [(layer, *product) for layer in range(2) for product in one]
    # with every layer silenced only the embedding is left, and its own row answers it best, whatever came before
    alone = model.forward(tokens, tokens, attend, adapters=silence)
    assert torch.equal(alone[3], model.forward(tokens[3:4], tokens[:1], attend_one_text(model.shape, 1), None, silence)[0])


def test_bfloat16_is_close_to_float32(tiny_model_dir: Path) -> None:
    tokens = list(range(5, 60))
    half = Engine.load(tiny_model_dir, EngineConfig(dtype="bfloat16")).logits(tokens).float()
    full = Engine.load(tiny_model_dir, EngineConfig(dtype="float32")).logits(tokens)
    assert float((half - full).abs().mean() / full.std()) < 0.02


@pytest.mark.parametrize("case", ["gemma3", "mixtral", "granite"])
def test_odd_families_run_in_bfloat16(case: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    family, changes = CASES[case]
    save_model(tmp_path, family, tiny_model_dir, **changes)
    tokens = list(range(5, 45))
    half, full = (Engine.load(tmp_path, EngineConfig(dtype=dtype)).logits(tokens).double() for dtype in ("bfloat16", "float64"))
    assert float((half - full).abs().median() / full.std()) < 0.03


@pytest.mark.parametrize("case", ["gemma3", "mixtral", "qwen2 moe", "olmo2", "starcoder2", "stablelm parallel", "smollm3", "granite moe"])
def test_on_our_own_kernels_a_token_is_the_same_alone_or_in_company(case: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    """Bit by bit in bfloat16, for what the native stack runs as for what it leaves to the lean decoder."""
    if not native("auto"):
        pytest.skip("our own kernels do not run here")
    family, changes = CASES[case]
    save_model(
        tmp_path, family, tiny_model_dir, **changes | {"num_attention_heads": 3, "num_key_value_heads": 1}
    )  # heads of 16, as kernels like
    engine = Engine.load(tmp_path, EngineConfig(dtype="bfloat16", block_size=16, prefix_cache=False, draft="off"))
    sampling = Sampling(temperature=0, max_tokens=12, ignore_eos=True, logprobs=2)
    prompts = [[5 + i, *range(9, 12 + 7 * i)] for i in range(5)]
    together = engine.generate(prompts, sampling)
    alone = [engine.generate([prompt], sampling)[0] for prompt in prompts]
    assert [(a.tokens, a.logprobs) for a in alone] == [(a.tokens, a.logprobs) for a in together]


def test_tied_heads_share_the_embedding_and_mapped_weights_are_not_copied(tiny_model_dir: Path) -> None:
    """In the type it is stored in, a matrix that needs no other layout is the file's own memory."""
    model = Engine.load(tiny_model_dir, EngineConfig(dtype="float32")).runner.model
    assert model._head.weight.data_ptr() == model._embedding.weight.data_ptr()
    maps = Path("/proc/self/maps")
    if maps.exists():
        address = model._embedding.weight.data_ptr()
        lines = (line.split() for line in maps.read_text().splitlines() if line.endswith("model.safetensors"))
        spans = [[int(end, 16) for end in line[0].split("-")] for line in lines]
        assert any(low <= address < high for low, high in spans)
