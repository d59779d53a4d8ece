"""Smaller models of the same architecture: what goes is what is missed least, and dead parts are not missed at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train.compress.test_gptq import drawn
from train.compress.calibrate import Moments, moments
from train.compress.structure import block_influence, refitted, shrunk, worth_keeping

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 40, "head_dim": 8}
SEQUENCES = [[1, 2, 3, 4, 5], [6, 7, 8], list(range(9, 39))]


def small(family: str = "Llama", **changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE | {"num_key_value_heads": 2} | changes)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(torch.tensor([tokens])).logits[0] for tokens in SEQUENCES])


@given(st.integers(0, 2**31), st.integers(2, 9), st.sampled_from([1, 3]), st.data())
def test_refitting_errs_no_more_than_zeroing(seed, groups, size, data):
    num_kept = data.draw(st.integers(1, groups - 1))
    weight, known = drawn(seed, 4, groups * size, 60)
    kept = worth_keeping(weight, known, size, num_kept)
    assert kept == sorted(set(kept))
    assert len(kept) == num_kept
    columns = torch.tensor([g * size + c for g in kept for c in range(size)])
    zeroed, fitted = torch.zeros_like(weight), torch.zeros_like(weight)
    zeroed[:, columns], fitted[:, columns] = weight[:, columns], refitted(weight, known, columns)
    damped = Moments(known.damped.float(), 60)
    assert damped.errors(fitted - weight).sum() <= damped.errors(zeroed - weight).sum() * 1.001


def test_a_column_that_others_explain_goes_first():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, x[:, :1] + x[:, 1:2]], 1)  # the last is the sum of the first two, and has the largest weight
    known, weight = Moments(x.T @ x / 500, 500), torch.tensor([[1.0, 1.0, 1.0, 2.0]])
    kept = worth_keeping(weight, known, 1, 3)
    assert 2 in kept
    columns = torch.tensor(kept)
    change = torch.zeros(1, 4)
    change[:, columns] = refitted(weight, known, columns)
    assert known.errors(change - weight).item() < 0.01 * known.errors(weight).item()


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_dead_heads_and_channels_are_not_missed(family):
    model = small(family)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight[:8] = 0  # the first key-value head
            layer.mlp.up_proj.weight[::3] = 0
    smaller = shrunk(model, moments(model, SEQUENCES), num_key_value_heads=1, num_channels=32)
    assert (smaller.config.num_attention_heads, smaller.config.num_key_value_heads, smaller.config.intermediate_size) == (2, 1, 32)
    torch.testing.assert_close(logits(smaller), logits(model), rtol=0, atol=0.05 * float(logits(model).std()))


def test_the_folder_is_an_ordinary_one_that_the_engine_runs(tiny_model_dir, tmp_path):
    from serve.engine.config import EngineConfig
    from serve.engine.engine import Engine
    from train.compress.export import export
    from train.compress.quantize import load_dense

    model = load_dense(tiny_model_dir)
    config = model.config
    smaller = shrunk(model, moments(model, SEQUENCES), num_channels=config.intermediate_size // 2, blocks=[1])
    export(smaller, {}, tiny_model_dir, tmp_path)
    tokens = list(range(5, 20))
    loaded = Engine.load(tmp_path, EngineConfig(dtype="float32")).runner.logits(tokens)
    with torch.no_grad():
        torch.testing.assert_close(loaded, smaller(torch.tensor([tokens])).logits[0], rtol=0, atol=1e-4)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())


def test_a_block_that_does_nothing_has_no_influence_and_is_not_missed():
    model = small()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    influence = block_influence(model, SEQUENCES)
    assert abs(influence[1]) < 1e-6 < min(influence[0], influence[2])
    torch.testing.assert_close(logits(shrunk(model, {}, blocks=[0, 2])), logits(model))


def test_everything_kept_is_the_same_model():
    model = small()
    assert torch.equal(logits(shrunk(model, {})), logits(model))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_key_value_heads": 3}, "3 key-value heads of 2"),
        ({"num_channels": 49}, "49 channels of 48"),
        ({"blocks": [0, 3]}, r"blocks \[0, 3\] cannot be kept of 3"),
        ({"blocks": []}, "cannot be kept of 3"),
    ],
)
def test_what_cannot_be_kept_is_one_line(asked, message):
    with pytest.raises(ValueError, match=f"structure: {message}" if "blocks" not in asked else message):
        shrunk(small(), {}, **asked)


def test_other_layers_are_refused():
    with pytest.raises(ValueError, match="are not built as Llama's"):
        shrunk(small("Phi3", pad_token_id=0), {})
