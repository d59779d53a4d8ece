"""The law of packing: the loss of a packed batch, and its gradient, are the sums of its documents'; for every architecture."""

from __future__ import annotations

import doctest
from functools import lru_cache
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, FalconH1Config, GPT2Config, PreTrainedModel

from train import segments
from train.architectures import make_config, make_model
from train.corpus import IGNORED, Batch, pack
from train.loss import CausalLoss, decoder
from train.plan.shapes import Architecture, shape_of_width
from train.segments import apart, honours_segments

VOCAB, LENGTH = 90, 32
ARCHITECTURES = get_args(Architecture)
KEEP_APART = {"dense", "sliding", "moe"}


@lru_cache
def loss_of(architecture: Architecture) -> CausalLoss:
    shape = shape_of_width(64, vocab_size=VOCAB, max_length=LENGTH, architecture=architecture)
    return CausalLoss(make_model(make_config(shape), seed=1))


def packed(lengths: list[int], seed: int = 0) -> tuple[Batch, list[list[int]]]:
    rng = np.random.default_rng(seed)
    documents = [rng.integers(0, VOCAB, size).tolist() for size in lengths]
    sequences = pack(documents, [[True] * size for size in lengths], LENGTH, 0)
    return sequences.batch(np.arange(len(sequences))), documents


def plain_sum(model: PreTrainedModel, documents: list[list[int]]) -> torch.Tensor:
    """What transformers itself makes of the documents, one by one."""
    losses = [torch.zeros(())]
    for document in documents:
        if len(document) > 1:
            ids = torch.tensor([document])
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:], reduction="sum"))
    return torch.stack(losses).sum()


def test_doctests():
    assert doctest.testmod(segments).failed == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_packed_loss_is_the_sum_of_the_parts(architecture):
    batch, documents = packed([32, 20, 7, 5, 3, 12, 2, 1, 9, 4])
    loss = loss_of(architecture)
    loss._balance = 0.0  # it is no part of a document's loss, and would be of the gradient
    found, expected = loss(*batch.tensors), plain_sum(loss.model, documents)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    weights = [p for p in loss.model.parameters() if p.requires_grad]
    ours, plain = (torch.autograd.grad(total, weights, allow_unused=True) for total in (found, expected))
    for one, other in zip(ours, plain, strict=True):
        if one is not None or other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@given(lengths=st.lists(st.integers(1, LENGTH), min_size=1, max_size=8), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("architecture", ["sliding", "ssm"])
def test_whatever_is_packed(architecture, lengths, seed):
    batch, documents = packed(lengths, seed)
    loss = loss_of(architecture)
    with torch.no_grad():
        torch.testing.assert_close(loss(*batch.tensors), plain_sum(loss.model, documents), rtol=1e-5, atol=1e-4)


@given(lengths=st.lists(st.integers(1, LENGTH), min_size=1, max_size=12))
def test_every_labelled_token_is_in_one_part_and_padding_is_bounded(lengths):
    batch, documents = packed(lengths)
    parts = list(apart(*batch.tensors))
    assert len(parts) == 4
    assert sum(int((labels != IGNORED).sum()) for _, labels, _ in parts) == batch.num_labels == sum(len(d) - 1 for d in documents)
    rows = sorted(
        row[: int((targets != IGNORED).sum()) + 1].tolist()
        for ids, labels, _ in parts
        for row, targets in zip(ids, labels)
        if targets.max() >= 0
    )
    assert rows == sorted(document for document in documents if len(document) > 1)
    for (ids, _, _), least in zip(parts, (0, 4, 8, 16), strict=True):
        assert ids.shape[1] <= max(1, 2 * least, 4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_which_models_keep_packed_documents_apart_is_found_out(architecture):
    model = loss_of(architecture).model
    model.train()
    assert honours_segments(decoder(model), VOCAB) == (architecture in KEEP_APART)
    assert model.training


@pytest.mark.parametrize(
    ("config", "honours"),
    [
        (GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0), True),
        (
            FalconH1Config(
                vocab_size=VOCAB, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                head_dim=32, mamba_d_ssm=128, mamba_n_heads=4, mamba_d_head=32, mamba_d_state=16,
            ),
            False,
        ),
    ],
    ids=["gpt2", "falcon_h1"],
)  # fmt: skip
def test_models_from_elsewhere_are_found_out_too(config, honours):
    torch.manual_seed(0)
    assert honours_segments(decoder(AutoModelForCausalLM.from_config(config)), VOCAB) == honours
