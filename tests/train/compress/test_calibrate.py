"""What can be compressed, and the moments of what it reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.compress.calibrate import Moments, matrices, moments, weight_of
from train.compress.quantize import load_dense

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
SEQUENCES = [[1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11], []]


def small(family: str, **changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL | changes)
    return getattr(transformers, f"{family}ForCausalLM")(config)


def test_matrices_of_a_tied_model_and_of_another(tiny_model_dir):
    tied = {m.name: m for m in matrices(load_dense(tiny_model_dir))}
    assert next(iter(tied)) == "model.embed_tokens"
    assert tied["model.embed_tokens"].role == "tied"
    assert len(tied) == 1 + 2 * 7
    untied = {m.name: m.role for m in matrices(small("Llama", tie_word_embeddings=False))}
    assert untied["model.embed_tokens"] == "embedding"
    assert untied["lm_head"] == "head"


@pytest.mark.parametrize(("family", "linears"), [("Llama", 7), ("Qwen3", 7), ("Gemma2", 7), ("Phi3", 4)])
def test_families(family, linears):
    model = small(family, num_key_value_heads=2, head_dim=8, pad_token_id=0)
    names = [m.name for m in matrices(model) if m.role == "linear"]
    assert len(names) == linears
    known = moments(model, SEQUENCES)
    assert set(names) <= known.keys()
    assert all(known[name].count == 11 for name in names)
    assert all(len(known[name].xx) == weight_of(model, name).shape[1] for name in names)


def test_stacked_experts_are_left_out_and_the_rest_is_calibrated():
    model = small("Mixtral", num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1)
    names = [m.name for m in matrices(model) if m.role == "linear"]
    assert names
    assert not any("expert" in name for name in names)
    assert set(names) <= moments(model, SEQUENCES).keys()


def test_a_model_without_linear_layers_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(ValueError, match="no linear layers"):
        matrices(GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40)))


def test_moments_are_the_mean_of_the_outer_products():
    model = small("Llama", tie_word_embeddings=True)
    known = moments(model, SEQUENCES, progress=(told := []).append)
    assert sum(told) == 3
    inputs: list[torch.Tensor] = []
    hook = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda module, given: inputs.append(given[0][0]))
    states = []
    with torch.no_grad():
        for sequence in SEQUENCES[:3]:
            states.append(model.model(torch.tensor([sequence])).last_hidden_state[0])
    hook.remove()
    for name, xs in (("model.layers.0.mlp.down_proj", inputs), ("model.embed_tokens", states)):
        x = torch.cat(xs)
        torch.testing.assert_close(known[name].xx, x.T @ x / len(x), rtol=1e-4, atol=1e-6)
        assert known[name].count == 11


def test_what_reads_the_same_shares_its_moments():
    known = moments(small("Llama", num_hidden_layers=2), SEQUENCES)
    for layer in range(2):
        q, k, v = (known[f"model.layers.{layer}.self_attn.{p}_proj"] for p in "qkv")
        gate, up = (known[f"model.layers.{layer}.mlp.{p}_proj"] for p in ("gate", "up"))
        assert q is k is v
        assert gate is up
        assert len({id(each) for each in (q, gate, known[f"model.layers.{layer}.mlp.down_proj"])}) == 3
    assert known["model.layers.0.self_attn.q_proj"] is not known["model.layers.1.self_attn.q_proj"]


@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 30))
def test_moments_can_be_inverted_and_tell_the_error(seed, columns, num):
    generator = torch.Generator().manual_seed(seed)
    x, change = torch.randn(num, columns, generator=generator), torch.randn(3, columns, generator=generator)
    known = Moments(x.T @ x / num, num)
    torch.testing.assert_close(known.errors(change), (x @ change.T).square().mean(0), rtol=1e-3, atol=1e-4)
    root = known.inverse_root.double()
    torch.testing.assert_close(root.T @ root @ known.damped, torch.eye(columns).double(), rtol=1e-3, atol=1e-3)
    ordered = known.ordered_inverse_root.double()
    swapped = known.damped[known.order][:, known.order]
    torch.testing.assert_close(ordered.T @ ordered @ swapped, torch.eye(columns).double(), rtol=1e-3, atol=1e-3)


def test_what_was_derived_can_be_let_go_and_derived_again():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    known = Moments(x.T @ x / 50, 50)
    before = [known.damped, known.inverse_root, known.order, known.ordered_inverse_root]
    known.let_go()
    assert known.__dict__.keys() == {"xx", "count"}, "nothing else is held"
    assert all(map(torch.equal, before, [known.damped, known.inverse_root, known.order, known.ordered_inverse_root]))
