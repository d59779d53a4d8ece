"""A recipe builds exactly the model that the arithmetic counts, and the same one from the same seed."""

from __future__ import annotations

import copy
import math
from typing import get_args

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BambaForCausalLM,
    LlamaForCausalLM,
    Mamba2ForCausalLM,
    MistralForCausalLM,
    MixtralForCausalLM,
    MptForCausalLM,
    Qwen3_5ForCausalLM,
)

from train.architectures import RECIPES, SpecialTokens, make_config, make_model
from train.model_folder import write_model
from train.plan.shapes import Architecture, ModelShape, candidate_shapes, shape_of_width

SMALL = shape_of_width(64, vocab_size=300, max_length=64)
CLASSES = {
    "dense": LlamaForCausalLM,
    "sliding": MistralForCausalLM,
    "alibi": MptForCausalLM,
    "moe": MixtralForCausalLM,
    "ssm": Mamba2ForCausalLM,
    "hybrid": BambaForCausalLM,
    "linear": Qwen3_5ForCausalLM,
}
ARCHITECTURES = sorted(CLASSES)


def small(architecture: str) -> ModelShape:
    return shape_of_width(64, vocab_size=300, max_length=64, architecture=architecture)


def test_every_architecture_has_a_recipe():
    assert set(RECIPES) == set(CLASSES) == set(get_args(Architecture))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("width", [64, 96, 224, 256])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_are_counted_exactly(architecture, width, tied):
    table = shape_of_width(width, vocab_size=512, max_length=128, architecture=architecture).table() | {"tie_embeddings": tied}
    shape = ModelShape.from_table(table)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(make_config(shape))
    assert isinstance(built, CLASSES[architecture])
    assert sum(p.numel() for p in built.parameters()) == shape.num_parameters


def test_every_candidate_counts_right_at_full_size():
    for shape in candidate_shapes(vocab_size=8192, max_length=256, max_parameters=300_000_000):
        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(make_config(shape))
        assert sum(p.numel() for p in built.parameters()) == shape.num_parameters


def test_a_seed_fixes_the_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(7)
    expected = copy.deepcopy(torch.get_rng_state())
    one, again = make_model(make_config(SMALL), seed=3), make_model(make_config(SMALL), seed=3)
    other = make_model(make_config(SMALL), seed=4)
    assert torch.equal(torch.get_rng_state(), expected)
    for a, b in zip(one.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_model_guesses_nearly_uniformly(architecture):
    shape = shape_of_width(128, vocab_size=512, max_length=64, architecture=architecture)
    model = make_model(make_config(shape)).eval()
    tokens = torch.randint(0, 512, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = model(input_ids=tokens, labels=tokens).loss.item()
    assert math.log(512) - 0.2 < loss < math.log(512) + 0.6


def test_bfloat16_is_the_rounded_float32():
    wide, narrow = make_model(make_config(SMALL), seed=1), make_model(make_config(SMALL), seed=1, dtype=torch.bfloat16)
    for a, b in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert b.dtype == torch.bfloat16
        assert torch.equal(a.to(torch.bfloat16), b)


def test_a_plan_table_is_taken_as_it_is_and_its_mistakes_are_named():
    config = make_config(SMALL.table(), SpecialTokens(end=0, pad=3))
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id) == (300, 3, 0)
    with pytest.raises(ValueError, match=r"\[model\]: unknown key 'widht'"):
        make_config(SMALL.table() | {"widht": 3})
    with pytest.raises(ValueError, match="architecture"):
        make_config(SMALL.table() | {"architecture": "rnn"})
    with pytest.raises(ValueError, match="pad token has id 300"):
        make_config(SMALL, SpecialTokens(end=0, pad=300))


def test_special_tokens_come_from_the_tokenizer(tiny_model_dir):
    tokens = SpecialTokens.of(AutoTokenizer.from_pretrained(tiny_model_dir))
    assert tokens == SpecialTokens(end=0, pad=3)

    class Endless:
        eos_token_id = None
        pad_token_id = None

    with pytest.raises(ValueError, match="no end-of-text token"):
        SpecialTokens.of(Endless())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_exported_model_loads_with_transformers_and_generates_as_the_whole_text_says(architecture, tmp_path, tiny_model_dir):
    model = make_model(make_config(small(architecture))).eval()
    write_model(model, tmp_path, dtype=torch.float32, tokenizer=tiny_model_dir)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, CLASSES[architecture])
    assert architecture == "ssm" or loaded.config.max_position_embeddings == 64
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, loaded(tokens).logits, atol=1e-5)
        text = loaded.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=6, do_sample=False, eos_token_id=-1)
        logits = loaded(text, use_cache=False).logits[0, 9:-1]
    chosen = logits.gather(1, text[0, 10:, None])[:, 0]
    assert text.shape == (1, 16)
    assert torch.allclose(chosen, logits.max(1).values, atol=1e-4)  # the state carried from token to token is that of the whole text


@pytest.mark.parametrize("context", [5, 40])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_sequence_keeps_is_counted_exactly(architecture, context):
    shape = small(architecture)
    model = make_model(make_config(shape)).eval()
    with torch.no_grad():
        kept = model(input_ids=torch.arange(context)[None], use_cache=True)
    names = ("keys", "values", "conv_states", "recurrent_states")
    memory = kept.cache_params if architecture == "ssm" else kept.past_key_values
    assert sum(values(getattr(layer, name, None)) for layer in memory.layers for name in names) == shape.cache_bytes(context, 1)


def values(tensors: object) -> int:
    if isinstance(tensors, dict):
        return sum(map(values, tensors.values()))
    return tensors.numel() if isinstance(tensors, torch.Tensor) else 0
