from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from train.tuning.biases import with_biases

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
CONFIGS = {
    "llama": (LlamaConfig(**SIZES), 14),  # none of its own: a switch for attention's four, one for the MLP's three
    "qwen2": (Qwen2Config(**SIZES), 6),  # three of its own a layer, and no switch
    "gpt2": (GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0), 13),  # norms have biases too
}


@pytest.mark.parametrize("family", CONFIGS)
def test_biases_begin_at_what_the_model_computes_and_are_all_that_learns(family: str):
    config, number = CONFIGS[family]
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config).eval()
    model = with_biases(copy.deepcopy(plain))
    rows = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(rows).logits, plain(rows).logits)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == number
    assert all(name.endswith(".bias") for name in trained)
    anew = AutoModelForCausalLM.from_config(model.config)  # the configuration tells of every one of them
    assert {name for name, _ in anew.named_parameters()} == {name for name, _ in model.named_parameters()}


def test_a_family_without_biases_is_refused():
    with pytest.raises(ValueError, match="mistral can have none; choose another method") as caught:
        with_biases(AutoModelForCausalLM.from_config(MistralConfig(**SIZES)))
    assert "\n" not in str(caught.value)
