"""Routing: every token goes to its k likeliest experts, nobody else's choice matters, and only chosen experts are run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.experts import Mixture, grouped, route
from serve.engine.parts import Layer, Mlp
from serve.engine.shape import Experts, Shape

HIDDEN, COUNT = 6, 7


class FakeWeights:
    """A router of seven experts."""

    def linear(self, *modules: str):
        matrix = torch.randn(
            1 if modules == ("shared gate",) else COUNT, HIDDEN, generator=torch.Generator().manual_seed(5), dtype=torch.float64
        )
        return lambda x: (x[:, None] * matrix).sum(-1)  # in one order, whatever the number of rows


def mixture(rule: Experts, ran: list[tuple[str, int]], shared: bool = False) -> Mixture:
    """Expert i multiplies by i + 1 and notes for how many tokens."""

    def make(mlp: Mlp):
        name = mlp.down[0]

        def expert(x: torch.Tensor, adapters: object = None) -> torch.Tensor:
            ran.append((name, len(x)))
            return x * (int(name) + 1)

        return expert

    experts = tuple(Mlp((str(i),), (str(i),)) for i in range(rule.count))
    part = Layer(
        before_attention=None, qkv=(), q_norm=None, k_norm=None, out=(), after_attention=None, before_mlp=None, mlp=None, after_mlp=None,
        router="router", experts=experts, shared_gate="shared gate" if shared else None,
    )  # fmt: skip
    return Mixture(_shape(rule), FakeWeights(), part, make, make(Mlp(("99",), ("99",))) if shared else None)


def _shape(rule: Experts) -> Shape:
    sizes = {"num_layers": 1, "hidden_size": HIDDEN, "mlp_size": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": HIDDEN, "vocab_size": 1}
    layer = {"windows": (None,), "ropes": (), "rope_of": (None,), "sparse": (True,), "experts": rule}
    return Shape(**sizes, **layer, max_length=1, eos_token_ids=(), tied=True, norm_eps=1e-6, attention_scale=1.0)


def rule(per_token: int, normalise: bool) -> Experts:
    return Experts(count=COUNT, per_token=per_token, size=1, normalise=normalise)


@given(st.integers(1, COUNT), st.booleans(), st.integers(0, 999), st.integers(1, 9))
def test_routes_are_the_largest_of_a_softmax(per_token: int, normalise: bool, seed: int, num_tokens: int) -> None:
    logits = torch.randn(num_tokens, COUNT, generator=torch.Generator().manual_seed(seed))
    chosen, shares = route(logits, rule(per_token, normalise))
    assert chosen.shape == shares.shape == (num_tokens, per_token)
    for row, experts, weights in zip(logits.softmax(-1), chosen.tolist(), shares, strict=True):
        assert len(set(experts)) == per_token
        assert set(experts) == set(row.argsort(descending=True)[:per_token].tolist())
        picked = row[experts]
        torch.testing.assert_close(weights, picked / picked.sum() if normalise else picked)


@given(st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3, unique=True), min_size=1, max_size=12))
def test_groups_hold_every_slot_once_under_its_own_expert(chosen: list[list[int]]) -> None:
    order, groups = grouped(torch.tensor(chosen))
    flat = [expert for row in chosen for expert in row]
    assert sorted(order.tolist()) == list(range(len(flat)))
    assert [flat[slot] for slot in order.tolist()] == [expert for expert, count in groups for _ in range(count)]
    assert [expert for expert, _ in groups] == sorted(set(flat))


@given(st.integers(1, 4), st.booleans(), st.integers(0, 999), st.integers(1, 9))
def test_a_token_gets_the_weighted_sum_of_its_experts_alone_or_in_company(
    per_token: int, normalise: bool, seed: int, num_tokens: int
) -> None:
    x = torch.randn(num_tokens, HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ran: list[tuple[str, int]] = []
    layer = mixture(rule(per_token, normalise), ran)
    together = layer(x)
    assert sum(count for _, count in ran) == num_tokens * per_token, "nothing is computed that nobody asked for"
    chosen, shares = route(FakeWeights().linear("router")(x), rule(per_token, normalise))
    torch.testing.assert_close(together, x * (shares * (chosen + 1)).sum(-1, keepdim=True))
    for i in range(num_tokens):
        assert torch.equal(layer(x[i : i + 1])[0], together[i])


def test_one_token_runs_only_its_experts() -> None:
    ran: list[tuple[str, int]] = []
    mixture(rule(2, True), ran)(torch.ones(1, HIDDEN, dtype=torch.float64))
    assert len(ran) == 2


def test_the_shared_expert_is_weighted_by_its_own_gate() -> None:
    x = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with_shared, without = mixture(rule(2, True), [], shared=True)(x), mixture(rule(2, True), [])(x)
    gate = FakeWeights().linear("shared gate")(x).sigmoid()
    torch.testing.assert_close(with_shared - without, gate * x * 100)


def test_quantised_experts_run_as_they_are_stored(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Each expert's matrix in int8 under its own name, as compressed-tensors folders hold them: the logits of the widened weights."""
    packed, wide = (save_moe(tmp_path / name, tiny_model_dir) for name in ("packed", "wide"))
    tensors = load_file(wide / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    for name, weight in tensors.items():
        if ".experts." not in name:
            stored[name] = weight
            continue
        scale = weight.abs().amax(1, keepdim=True) / 127
        rows = (weight / scale).round().to(torch.int8)
        tensors[name] = rows * scale
        module = name.removesuffix(".weight")
        stored |= {f"{module}.weight_packed": pack_to_int32(rows, 8), f"{module}.weight_scale": scale}
        stored[f"{module}.weight_shape"] = torch.tensor(weight.shape)
    save_file(tensors, wide / "model.safetensors")
    save_file(stored, packed / "model.safetensors")
    scheme = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    group = {"targets": ["re:.*experts.*"], "weights": scheme, "format": "pack-quantized"}
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
    (packed / "config.json").write_text(json.dumps(config))
    ours, plain = (Engine.load(folder, EngineConfig(dtype="float32")).logits(list(range(5, 45))) for folder in (packed, wide))
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-4)


def save_moe(folder: Path, tokenizer_from: Path) -> Path:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(1)
    sizes = {
        "vocab_size": 400,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    moe = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "intermediate_size": 40, "max_position_embeddings": 128}
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **moe, initializer_range=0.15, pad_token_id=3)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / name, folder)
    return folder
