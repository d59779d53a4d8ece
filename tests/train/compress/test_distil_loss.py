"""The objective equals the plain formula, value and gradient; a live teacher and a kept one say the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from train.compress.distil_loss import DistilLoss, Target, chunked_kl, plain_kl
from train.corpus import IGNORED


def teacher_on(places: int, vocab: int, kept: int | None, seed: int = 0) -> Target:
    torch.manual_seed(seed)
    logprobs = torch.randn(places, vocab, dtype=torch.float64).mul(2).log_softmax(1)
    if kept is None:
        return Target(logprobs)
    best = logprobs.topk(kept, dim=1)
    return Target(best.values, best.indices)


@given(st.sampled_from([None, 1, 5, 30]), st.integers(0, 1000), st.sampled_from([7, 60, 1 << 20]))
def test_value_and_gradient_are_the_plain_formulas(kept, seed, chunk):
    target = teacher_on(9, 30, kept, seed)
    hidden, weight = (torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((9, 4), (30, 4)))
    plain = plain_kl(hidden @ weight.T, target).sum()
    expected = torch.autograd.grad(3 * plain, (hidden, weight))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.compress.distil_loss._CHUNK_ELEMENTS", chunk)
        found = chunked_kl(hidden, weight, lambda part: Target(target.logprobs[part], None if kept is None else target.ids[part]))
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(torch.autograd.grad(3 * found, (hidden, weight)), expected)


def test_the_bucket_is_the_judges():
    from train.compress.divergence import _bucketed_kl

    target, logq = teacher_on(6, 40, 8), torch.randn(6, 40, dtype=torch.float64).log_softmax(1)
    torch.testing.assert_close(plain_kl(logq, target), _bucketed_kl(target.logprobs, logq.gather(1, target.ids), whole=False))
    whole = teacher_on(6, 40, 40)
    torch.testing.assert_close(plain_kl(logq, whole), plain_kl(logq, teacher_on(6, 40, None)))


def test_a_model_that_says_the_same_has_nothing_to_learn():
    logits = torch.randn(5, 12, requires_grad=True)
    best = logits.detach().log_softmax(1).topk(3, dim=1)
    kl = plain_kl(logits, Target(best.values, best.indices)).sum()
    assert abs(float(kl.detach())) < 1e-6
    assert float(torch.autograd.grad(kl, logits)[0].abs().max()) < 1e-6


def test_a_live_teacher_says_what_a_kept_one_does(tiny_model_dir):
    model, teacher = (AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval() for _ in range(2))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        tokens = torch.randint(4, 300, (2, 12))
        labels = torch.cat([tokens[:, 1:], torch.full((2, 1), IGNORED)], 1)
        labels[0, 3:6] = IGNORED
        positions = torch.arange(12).expand(2, 12)
        logprobs = teacher(tokens).logits.log_softmax(-1)[labels != IGNORED]
    live = DistilLoss(model, teacher)
    found = live(tokens, labels, positions)
    best = logprobs.topk(logprobs.shape[1], dim=1)
    kept = DistilLoss(model)(tokens, labels, positions, best.indices, best.values)
    torch.testing.assert_close(found, kept, rtol=1e-4, atol=1e-4)
    assert float(found.detach()) > 0.01
    assert not [name for name, _ in live.named_parameters() if "teacher" in name]
    assert not any(p.requires_grad for p in teacher.parameters())


def test_packed_documents_are_judged_apart(tiny_model_dir):
    model, teacher = (AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval() for _ in range(2))
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    torch.manual_seed(2)
    tokens = torch.randint(4, 300, (1, 12))
    labels = torch.cat([tokens[:, 1:], torch.full((1, 1), IGNORED)], 1)
    labels[0, 6] = IGNORED
    positions = torch.tensor([[*range(7), *range(5)]])
    loss = DistilLoss(model, teacher)
    packed = loss(tokens, labels, positions)
    alone = loss(tokens[:, :7], labels[:, :7], positions[:, :7]) + loss(tokens[:, 7:], labels[:, 7:], positions[:, 7:])
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
    loss._packs = False
    torch.testing.assert_close(loss(tokens, labels, positions), alone, rtol=1e-4, atol=1e-5)
