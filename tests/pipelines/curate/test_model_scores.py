"""How unsure a model is of a text, held against transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.curate.model_scores import score_texts

TEXTS = ["The tern flies from pole to pole.", "def add(left, right):\n    return left + right\n" * 40, "x", "naïve 日本"]


@pytest.fixture(scope="module")
def logits(tiny_model_dir):
    """For each text its tokens, up to 64, and what transformers makes of them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model_dir), AutoTokenizer.from_pretrained(tiny_model_dir)
    tokens = [torch.tensor([tokenizer(text)["input_ids"][:64]]) for text in TEXTS]
    with torch.no_grad():
        return [(t[0], model(t).logits[0].log_softmax(-1)) for t in tokens]


def test_loss_is_transformers_mean_loss(tiny_model_dir, logits):
    found = score_texts(TEXTS, str(tiny_model_dir), "loss", 64)
    expected = [float(-logs[:-1].gather(-1, t[1:, None]).mean()) if len(t) > 1 else 0.0 for t, logs in logits]
    assert found == pytest.approx(expected, abs=1e-4)
    assert len(set(np.round(found, 3))) == 4


def test_margin_is_the_gap_between_the_two_likeliest(tiny_model_dir, logits):
    found = score_texts(TEXTS, str(tiny_model_dir), "margin", 64)
    expected = []
    for tokens, logs in logits:
        top = logs[:-1].exp().topk(2, -1).values
        expected.append(1 - float((top[:, 0] - top[:, 1]).mean()) if len(tokens) > 1 else 0.0)
    assert found == pytest.approx(expected, abs=1e-4)


def test_no_more_is_read_than_asked_for_or_than_the_model_can(tiny_model_dir):
    long = "def add(left, right):\n    return left + right\n" * 400
    cut = score_texts([long, long[:3000]], str(tiny_model_dir), "loss", 100)
    assert cut[0] == cut[1]
    assert np.isfinite(score_texts([long], str(tiny_model_dir), "loss", 100_000)).all()  # its context is 512


def test_a_folder_that_is_no_model_is_one_line(tmp_path):
    with pytest.raises(ValueError) as caught:
        score_texts(["x y"], str(tmp_path), "loss", 8)
    assert "\n" not in str(caught.value)
