"""A recipe builds exactly the model that the arithmetic counts, and the same one from the same seed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from train.architectures import SpecialTokens, make_config, make_model
from train.plan.shapes import ModelShape, candidate_shapes, shape_of_width

SMALL = shape_of_width(64, vocab_size=300, max_length=64)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("width", [64, 96, 224, 256])
def test_parameters_are_counted_exactly(width, tied):
    table = shape_of_width(width, vocab_size=512, max_length=128).table() | {"tie_embeddings": tied}
    shape = ModelShape.from_table(table)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(make_config(shape))
    assert isinstance(built, LlamaForCausalLM)
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


def test_a_fresh_model_guesses_nearly_uniformly():
    shape = shape_of_width(128, vocab_size=512, max_length=64)
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


def test_a_saved_model_loads_with_transformers(tmp_path):
    model = make_model(make_config(SMALL))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, loaded(tokens).logits, atol=1e-5)
