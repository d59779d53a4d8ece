from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.likelihood import Score, judge, windows


@given(num_tokens=st.integers(1, 300), max_length=st.integers(2, 40), overlap=st.floats(0, 0.99))
def test_windows_judge_every_token_once_within_their_length(num_tokens, max_length, overlap):
    judged = []
    for start, first, end in windows(num_tokens, max_length, overlap):
        assert 0 <= start < first < end <= num_tokens
        assert end - start - 1 <= max_length
        judged += range(first, end)
    assert judged == list(range(1, num_tokens))


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval(), AutoTokenizer.from_pretrained(tiny_model_dir)


def test_scores_equal_the_plain_sum_whatever_the_batching(model):
    texts = ["def add(a, b):\n    return a + b\n", "Ünïcode 🐦 and a tab\t", "x", "The tern flies. " * 9]
    settings = {"max_length": 512, "overlap": 0.5}
    scores = judge(*model, texts, **settings, batch_tokens=4096)
    one_by_one = judge(*model, texts, **settings, batch_tokens=1)
    for text, score, alone in zip(texts, scores, one_by_one, strict=True):
        ids = torch.tensor([[0, *model[1].encode(text)]])
        with torch.no_grad():
            plain = torch.nn.functional.cross_entropy(model[0](ids).logits[0, :-1].double(), ids[0, 1:], reduction="sum")
        assert score.nats == pytest.approx(float(plain), rel=1e-5)
        assert alone.nats == pytest.approx(score.nats, rel=1e-5)
        assert score.num_bytes == len(text.encode())
        assert score.bits_per_byte == pytest.approx(float(plain) / math.log(2) / len(text.encode()), rel=1e-5)


def test_long_documents_are_judged_in_windows_and_a_model_without_first_token_guesses_it(model):
    text = "The tern flies from pole to pole. " * 30
    (score,) = judge(*model, [text], max_length=32, overlap=0.5, batch_tokens=512)
    assert score.num_tokens == len(model[1].encode(text)) > 64
    assert 0 < score.loss < 3 * math.log(400)
    special = model[1].bos_token, model[1].eos_token
    try:
        model[1].bos_token = model[1].eos_token = None
        (guessed,) = judge(*model, ["x"], max_length=32, overlap=0.5, batch_tokens=512)
    finally:
        model[1].bos_token, model[1].eos_token = special
    assert guessed.nats == pytest.approx(math.log(len(model[1])))


def test_scores_add_up():
    assert Score(math.log(2) * 8, 2, 4) + Score(0.0, 0, 0) == Score(math.log(2) * 8, 2, 4)
    assert Score(math.log(2) * 8, 2, 4).bits_per_byte == pytest.approx(2.0)
