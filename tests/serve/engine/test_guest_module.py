"""What a foreign module can do is found by trying it, so a module that cannot is found out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from serve.engine.config import UNLIMITED
from serve.engine.guest_module import Abilities, GuestModule

CPU = torch.device("cpu")
COMMON = {"vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 2, "initializer_range": 0.2, "eos_token_id": [7, 9], "pad_token_id": 3}
KINDS: dict[str, tuple[dict[str, Any], Abilities]] = {
    "GPTNeoX": (
        {"num_attention_heads": 4, "intermediate_size": 96, "max_position_embeddings": 77},
        Abilities(extends=True, crops=True, batches=True, pads=True),
    ),
    "Mamba": ({"state_size": 8}, Abilities(extends=False, crops=False, batches=True, pads=False)),
    "Rwkv": (
        {"attention_hidden_size": 48, "intermediate_size": 96, "context_length": 128},
        Abilities(extends=True, crops=False, batches=False, pads=False),
    ),
    "xLSTM": (
        {"hidden_size": 64, "num_heads": 2, "chunkwise_kernel": "chunkwise--native_autograd", "chunk_size": 16, "qk_dim_factor": 1.0},
        Abilities(extends=True, crops=False, batches=True, pads=False),
    ),
    "Lfm2": (
        {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "layer_types": ["conv", "full_attention"]},
        Abilities(extends=True, crops=False, batches=True, pads=False),
    ),
}


def make(kind: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**COMMON | KINDS[kind][0] | fields)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_abilities(kind: str) -> None:
    assert GuestModule(make(kind), {}, torch.float64, CPU).abilities == KINDS[kind][1]


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_the_same_is_found_and_every_tensor_is_as_it_was(kind: str) -> None:
    module = make(kind).to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert GuestModule(module, {}, torch.bfloat16, CPU).abilities == KINDS[kind][1]
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name]) or kind == "Rwkv", "RWKV scales its own weights down, once"


def test_what_the_engine_needs_to_know() -> None:
    neox, mamba = (GuestModule(make(kind), {"eos_token_id": 5}, torch.float64, CPU) for kind in ("GPTNeoX", "Mamba"))
    assert (neox.shape.vocab_size, neox.shape.hidden_size, neox.shape.max_length, neox.shape.eos_token_ids) == (300, 48, 77, (5,))
    assert (mamba.shape.max_length, mamba.bytes_per_token) == (UNLIMITED, 0)
    assert neox.bytes_per_token == 2 * 2 * 48 * 8  # keys and values, two layers
    assert GuestModule(make("GPTNeoX"), {}, torch.float64, CPU).shape.eos_token_ids == (7, 9)


def test_a_module_that_does_not_go_on_is_refused() -> None:
    """One whose positions begin at zero again."""
    module = make("GPTNeoX")
    forward = module.forward

    def forgetful(input_ids: Any = None, position_ids: Any = None, past_key_values: Any = None, use_cache: Any = None) -> Any:
        return forward(input_ids, position_ids=position_ids - position_ids[:, :1], past_key_values=past_key_values, use_cache=use_cache)

    module.forward = forgetful
    with pytest.raises(ValueError, match="its memory does not continue a text"):
        GuestModule(module, {}, torch.float64, CPU)


def test_a_module_without_memory_is_refused() -> None:
    module = make("GPTNeoX")
    module.forward = lambda input_ids=None: None
    with pytest.raises(ValueError, match="takes no memory"):
        GuestModule(module, {}, torch.float64, CPU)


def test_a_batch_that_mixes_its_rows_up_is_seen() -> None:
    """RWKV in transformers 5.23 broadcasts one row's token shift over the others when it is given one token each."""
    module = make("GPTNeoX")
    forward = module.forward

    def mixing(input_ids: Any = None, position_ids: Any = None, past_key_values: Any = None, use_cache: Any = None) -> Any:
        out = forward(input_ids, position_ids=position_ids, past_key_values=past_key_values, use_cache=use_cache)
        out.logits = out.logits.mean(0, keepdim=True).expand_as(out.logits)
        return out

    module.forward = mixing
    abilities = GuestModule(module, {}, torch.float64, CPU).abilities
    assert abilities == Abilities(extends=True, crops=True, batches=False, pads=False)
