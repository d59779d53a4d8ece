"""Low-rank updates of embedding and output layer, tied or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from train.architectures import make_config, make_model
from train.loss import CausalLoss, output_weight
from train.plan.shapes import shape_of_width
from train.tuning.embeddings import LowRank, updates_of, with_updates, without_updates

TOKENS = torch.tensor([[4, 9, 17, 30, 60, 9]])
BATCH = (TOKENS, TOKENS.roll(-1, 1), torch.arange(6)[None])


def model_of(tied: bool) -> Any:
    config = make_config(shape_of_width(64, vocab_size=300, max_length=32))
    config.tie_word_embeddings = tied
    return make_model(config).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def trained(model: Any) -> list[LowRank]:
    """Its updates, with values that are far from where they began."""
    found = list({id(update): update for _, update in updates_of(model).values()}.values())
    torch.manual_seed(1)
    for update in found:
        torch.nn.init.normal_(update.b, std=0.3)
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_they_change_nothing_at_first_and_fold_into_a_plain_model(tied: bool):
    model, plain = model_of(tied), model_of(tied)
    before, names = logits(model), [name for name, _ in model.named_parameters()]
    with_updates(model, 4, 2.0)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    assert len(trained(model)) == (1 if tied else 2)
    assert [name for name, p in model.named_parameters() if p.requires_grad and "embed_tokens" in name] == [
        f"model.embed_tokens.parametrizations.weight.0.{part}" for part in "ab"
    ]
    tuned = logits(model)
    assert (tuned - before).abs().max() > 0.1
    without_updates(model)
    torch.testing.assert_close(logits(model), tuned, rtol=1e-5, atol=1e-5)
    assert [name for name, _ in model.named_parameters()] == names
    assert type(model.lm_head) is type(plain.lm_head)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_their_gradient_is_the_whole_matrixs_through_the_product(tied: bool):
    """With W = W0 + s B A: dB = s dW Aᵀ and dA = s Bᵀ dW, the tied matrix's dW being of both its uses; the chunked loss, too."""
    model = with_updates(model_of(tied), 4, 2.0)
    updates = trained(model)
    folded = model_of(tied)
    for name, (_, update) in updates_of(model).items():
        with torch.no_grad():
            if not (tied and name == "lm_head"):
                folded.get_submodule(name).weight.copy_(update(folded.get_submodule(name).weight))
    assert output_weight(model) is not None
    losses = [CausalLoss(each)(*BATCH) for each in (model, folded)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    ends = [folded.model.embed_tokens, folded.lm_head][: len(updates)]
    for update, end in zip(updates, ends, strict=True):
        whole = end.weight.grad
        torch.testing.assert_close(update.b.grad, 2.0 * whole @ update.a.detach().T, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(update.a.grad, 2.0 * update.b.detach().T @ whole, rtol=1e-4, atol=1e-4)
