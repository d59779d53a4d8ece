from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from train.questions import Answered, Question, accuracy, answer_all, read_questions


def log_p(model, tokenizer, prompt: str, choice: str, first: list[int]) -> float:
    before, after = [*first, *tokenizer.encode(prompt)], tokenizer.encode(choice)
    with torch.no_grad():
        scores = model(torch.tensor([[*before, *after]])).logits[0].double().log_softmax(-1)
    return sum(float(scores[len(before) + i - 1, token]) for i, token in enumerate(after))


def test_choices_are_scored_after_their_prompt(tiny_model_dir: Path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval(), AutoTokenizer.from_pretrained(tiny_model_dir)
    talk = [{"role": "user", "content": "add 3"}]
    questions = [Question("The tern flies", (" from pole to pole.", " away", " Ünïcode"), 1), Question(talk, ("return 3", "no"), 0)]
    for batch_tokens in (1, 4096):
        one, two = answer_all(model, tokenizer, questions, max_length=128, batch_tokens=batch_tokens)
        expected = [-log_p(model, tokenizer, "The tern flies", choice, [0]) for choice in questions[0].choices]
        assert one.nats == pytest.approx(expected, rel=1e-5)
        assert one.num_bytes == (19, 5, 10)
        prompt = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        expected = [-log_p(model, tokenizer, prompt, f"{choice}<|endoftext|>", []) for choice in questions[1].choices]
        assert two.nats == pytest.approx(expected, rel=1e-5)


def test_of_a_long_prompt_the_end_is_read(tiny_model_dir: Path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval(), AutoTokenizer.from_pretrained(tiny_model_dir)
    long = Question("far away " * 40 + "The tern", (" flies", " swims"), 0)
    (found,) = answer_all(model, tokenizer, [long], max_length=16, batch_tokens=4096)
    tokens = tokenizer.encode(long.prompt)
    kept = tokens[-(17 - len(tokenizer.encode(" flies"))) :]
    assert found.nats[0] == pytest.approx(-log_p(model, tokenizer, "", " flies", kept), rel=1e-5)


def test_accuracy_counts_ties_as_wrong():
    answered = [Answered((1.0, 2.0), (1, 1), 0), Answered((1.0, 1.0), (1, 1), 0), Answered((3.0, 2.0), (6, 1), 0)]
    found = accuracy(answered)
    assert (found.share, found.per_byte, found.num_questions) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 3)
    assert found.error == pytest.approx((1 / 3 * 2 / 3 / 3) ** 0.5)


def test_a_template_that_refuses_a_question_is_one_line(tiny_model_dir: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    question = Question([{"role": "user", "content": "add 3"}], ("return 3", "no"), 0)
    with pytest.raises(ValueError, match=r"chat template refuses a question \(no such role\)"):
        answer_all(model, tokenizer, [question], max_length=16, batch_tokens=64)


def test_unusable_lines_are_counted(tmp_path: Path):
    good = [{"prompt": "p", "choices": ["a", "b"], "answer": 1}, {"prompt": "p", "chosen": "a", "rejected": "b"}]
    bad = [
        {"prompt": "p", "choices": ["a", "b"], "answer": 2}, {"prompt": "p", "choices": ["a", "b"], "answer": True},
        {"prompt": "p", "choices": ["a"], "answer": 0}, {"prompt": "", "choices": ["a", "b"], "answer": 0},
        {"prompt": "p", "choices": ["a", "a"], "answer": 0}, {"prompt": "p", "chosen": "a", "rejected": "a"},
        {"prompt": "p", "choices": ["a", "\ud800"], "answer": 0}, {"prompt": "\udfff", "choices": ["a", "b"], "answer": 0},
    ]  # fmt: skip
    (tmp_path / "q.jsonl").write_text("\n".join([*map(json.dumps, good + bad), "[]"]))
    found, unusable = read_questions(str(tmp_path / "q.jsonl"))
    assert unusable == 9
    assert found == [Question("p", ("a", "b"), 1), Question([{"role": "user", "content": "p"}], ("a", "b"), 0)]
