"""The penalty on uneven experts: its bounds, its gradient, and that it does not depend on who computes it."""

from __future__ import annotations

import pytest
import torch

from train.architectures import make_config, make_model
from train.corpus import IGNORED
from train.experts import balance_penalty
from train.loss import CausalLoss
from train.plan.shapes import shape_of_width

EXPERTS, CHOSEN = 8, 2


def labels_of(batch: int, length: int) -> torch.Tensor:
    return torch.ones(batch, length, dtype=torch.long)


def test_even_use_is_one_per_target_and_a_single_expert_is_their_number():
    labels = labels_of(2, 16)
    labels[1, 10:] = IGNORED
    targets = int((labels != IGNORED).sum())
    even = torch.eye(EXPERTS).repeat(4, 1) * 50.0
    assert balance_penalty([even], 1, labels_of(2, 16)) == pytest.approx(32, rel=1e-4)
    alone = torch.zeros(32, EXPERTS)
    alone[:, 3] = 50.0
    assert balance_penalty([alone, alone], 1, labels) == pytest.approx(EXPERTS * targets, rel=1e-4)


def test_it_is_the_sum_over_sequences_whoever_takes_them():
    torch.manual_seed(0)
    labels = labels_of(6, 10)
    labels[2, 3:] = IGNORED
    labels[4] = IGNORED
    layers = [torch.randn(60, EXPERTS) for _ in range(3)]
    whole = balance_penalty(layers, CHOSEN, labels)
    parts = [
        balance_penalty([layer.view(6, 10, -1)[rows].reshape(-1, EXPERTS) for layer in layers], CHOSEN, labels[rows])
        for rows in ([0, 1, 2], [3, 5], [4])
    ]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5)


def test_it_counts_what_transformers_counts_over_one_sequence():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(20, EXPERTS, generator=torch.Generator().manual_seed(1))
    theirs = load_balancing_loss_func((logits,), EXPERTS, CHOSEN)
    assert float(balance_penalty([logits], CHOSEN, labels_of(1, 20))) == pytest.approx(float(theirs) / CHOSEN * 20, rel=1e-5)


def test_training_minimises_it_and_the_reported_loss_is_without_it():
    shape = shape_of_width(64, vocab_size=90, max_length=32, architecture="moe")
    tokens = torch.randint(0, 90, (4, 33), generator=torch.Generator().manual_seed(0))
    batch = (tokens[:, :-1], tokens[:, 1:], torch.arange(32).expand(4, 32))
    losses, gates = [], []
    for balance in (0.0, 5.0):
        loss = CausalLoss(make_model(make_config(shape), seed=2))
        assert loss._balance == 0.01
        loss._balance = balance
        found = loss(*batch)
        found.backward()
        losses.append(float(found.detach()))
        gates.append(loss.model.model.layers[0].mlp.gate.weight.grad.clone())
    assert losses[0] == losses[1]
    assert not torch.allclose(gates[0], gates[1], rtol=0.1)
