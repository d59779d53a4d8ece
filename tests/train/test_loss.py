from __future__ import annotations

import pytest
import torch

import train.loss as loss_module
from train import chunked
from train.corpus import IGNORED
from train.loss import CausalLoss, chunked_nll, output_weight, token_nll


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "_CHUNK_ELEMENTS", 11 * 3)  # three positions of an 11-word vocabulary


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_chunked_loss_and_gradients_equal_the_plain_computation(dtype: torch.dtype, tolerance: float):
    torch.manual_seed(0)
    hidden = torch.randn(8, 6).to(dtype).requires_grad_()
    weight = torch.randn(11, 6).to(dtype).requires_grad_()
    labels = torch.randint(0, 11, (8,))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = torch.nn.functional.cross_entropy((hidden @ weight.T).to(wide), labels, reduction="sum")
    grads = torch.autograd.grad(expected * 0.5, (hidden, weight))
    found = chunked_nll(hidden, weight, labels)
    assert found.dtype == wide
    (found * 0.5).backward()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(hidden.grad, grads[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(weight.grad, grads[1], rtol=tolerance, atol=tolerance)


def test_no_logits_of_all_positions_are_held(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss_module, "_CHUNK_ELEMENTS", 100 * 16)
    largest = 0
    plain = chunked.wide

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return plain(tensor)

    monkeypatch.setattr(chunked, "wide", watched)
    chunked_nll(torch.randn(400, 8, requires_grad=True), torch.randn(100, 8, requires_grad=True), torch.randint(0, 100, (400,))).backward()
    assert largest == 100 * 16


def test_a_batch_without_targets_has_zero_loss_and_gradients(tiny_model_dir):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    ids = torch.randint(4, 400, (1, 6))
    nll = CausalLoss(model)(ids, torch.full((1, 6), IGNORED), torch.arange(6)[None])
    nll.backward()
    assert float(nll.detach()) == 0.0
    assert all(p.grad is not None and float(p.grad.abs().sum()) == 0.0 for p in model.parameters())


def test_models_that_change_their_logits_take_the_whole_model(tiny_model_dir):
    """A soft cap or a bias after the output layer is part of the loss: such models are not short-cut."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    ids, positions = torch.randint(4, 400, (2, 6)), torch.arange(6).expand(2, 6)
    labels = torch.randint(4, 400, (2, 6))
    labels[0, 3] = IGNORED
    short = CausalLoss(model)(ids, labels, positions)
    each = token_nll(model, ids, positions, labels)
    assert each[0, 3] == 0
    model.config.final_logit_softcapping = 30.0  # Llama ignores it, but the way round must be taken and agree
    assert output_weight(model) is None
    torch.testing.assert_close(CausalLoss(model)(ids, labels, positions), short)
    torch.testing.assert_close(token_nll(model, ids, positions, labels), each)
    torch.testing.assert_close(each.sum(), short.detach())
