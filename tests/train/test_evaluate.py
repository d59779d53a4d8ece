from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.config import EvaluateConfig
from train.evaluate import Score, _bounded, _slices, evaluate, judge, windows
from train.held_out import Document, read_documents


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


@pytest.mark.usefixtures("ray_session")
def test_models_are_compared_on_held_out_text(tmp_path: Path, tiny_model_dir: Path, tokens_dir: Path, models_dir: Path):
    config = EvaluateConfig(
        models=(f"random={tiny_model_dir}", str(models_dir / "tiny-code")), data=(str(tokens_dir),), output=str(tmp_path / "scores")
    )
    made = evaluate(config)
    values = made.manifest.metrics["by_kind"]
    assert set(values) == {"random", "tiny-code"}
    assert set(values["random"]) == {"all", "code", "prose"}
    assert values["tiny-code"]["all"] < 3 < values["random"]["all"]
    documents, _ = read_documents([str(tokens_dir)])
    assert made.manifest.counts["bytes"] == sum(len(d.text.encode()) for d in documents)
    assert made.manifest.headline == f"bits per byte: random {values['random']['all']:.3f}, tiny-code {values['tiny-code']['all']:.3f}"
    assert {f["kind"] for f in made.manifest.figures.values()} == {"bars", "table"}
    assert evaluate(config).digest == made.digest


@pytest.mark.usefixtures("ray_session")
def test_a_model_that_transformers_does_not_know_is_one_line(tmp_path: Path, tiny_model_dir: Path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "odd")
    (folder / "config.json").write_text('{"model_type": "no-such-family"}')
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(ValueError, match="not a causal language model") as caught:
        evaluate(EvaluateConfig(models=(str(folder),), data=(str(tmp_path / "text.txt"),), output=str(tmp_path / "out")))
    assert "\n" not in str(caught.value)


def test_slices_and_bounds_keep_documents_whole():
    documents = [Document("é" * n, "prose") for n in range(1, 30)]
    parts = _slices(documents, 4)
    assert sorted(len(d.text) for part in parts for d in part) == list(range(1, 30))
    assert max(sum(d.num_bytes for d in part) for part in parts) < 1.1 * min(sum(d.num_bytes for d in part) for part in parts)
    assert len(_slices(documents[:2], 4)) == 2
    assert sum(d.num_bytes for d in _bounded(documents, 100)) <= 100
    assert _bounded(documents, 0) == documents


def test_scores_add_up():
    assert Score(math.log(2) * 8, 2, 4) + Score(0.0, 0, 0) == Score(math.log(2) * 8, 2, 4)
    assert Score(math.log(2) * 8, 2, 4).bits_per_byte == pytest.approx(2.0)


def test_data_mistakes_are_named(tmp_path: Path, tiny_model_dir: Path):
    def run(*data: str, models: tuple[str, ...] = (str(tiny_model_dir),)) -> None:
        evaluate(EvaluateConfig(models=models, data=data, output=str(tmp_path / "out")))

    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bad.parquet").write_text("no")
    (tmp_path / "image.png").write_text("no")
    (tmp_path / "good.jsonl").write_text('{"text": "hello"}\n{"texts": 1}\n{')
    mistakes = {"absent.txt": "no such file", "empty.txt": "no text", "bad.parquet": "not a parquet file", "image.png": r"\.png file"}
    for name, message in mistakes.items():
        with pytest.raises(ValueError, match=message):
            run(str(tmp_path / name))
    with pytest.raises(ValueError, match="sterna tokenize"):
        run(str(tmp_path))
    with pytest.raises(ValueError, match="two are called 'm'"):
        run(str(tmp_path / "good.jsonl"), models=("m=a", "m=b"))
    assert read_documents([str(tmp_path / "good.jsonl")]) == ([Document("hello", "text")], 2)
