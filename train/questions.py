"""Multiple-choice questions: which of several continuations a model finds likeliest.

Promise: each choice is scored by Σ log p of its tokens after the prompt's, tokenised apart as a server would meet them; a question is
answered rightly if the right choice scores highest (ties are wrong), by sum and per byte of the choice, which does not favour short ones.
Price: the prompt is read once per choice. Source: the two accuracies of lm-evaluation-harness (EleutherAI).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from train.conversations import from_jsonl
from train.instructions import Message, is_text
from train.likelihood import nats_of
from train.tuning.preferences import parse_pair

__all__ = ["Accuracy", "Answered", "Question", "accuracy", "answer_all", "read_questions"]

_WANTED = "`prompt`, `choices` and `answer` (the right one's index, from 0), or `chosen` and `rejected`"


@dataclass(frozen=True, slots=True)
class Question:
    """Choices after a prompt: a text, or a conversation that the model's chat template renders."""

    prompt: str | list[Message]
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model made of a question."""

    nats: tuple[float, ...]
    """Σ −ln p of each choice."""
    num_bytes: tuple[int, ...]
    answer: int

    def right(self, *, per_byte: bool) -> bool:
        """Whether the right choice is likeliest.

        >>> Answered((3.0, 4.0), (1, 8), answer=1).right(per_byte=False), Answered((3.0, 4.0), (1, 8), answer=1).right(per_byte=True)
        (False, True)
        """
        costs = [nats / (size if per_byte else 1) for nats, size in zip(self.nats, self.num_bytes, strict=True)]
        return all(costs[self.answer] < cost for i, cost in enumerate(costs) if i != self.answer)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of the questions answered rightly."""

    share: float
    error: float
    """Standard error of the share."""
    per_byte: float
    num_questions: int


def read_questions(uri: str) -> tuple[list[Question], int]:
    """(questions, number of unusable lines) of a jsonl file; ValueError for a missing file, and for one without any question."""
    found = from_jsonl(uri, _parse, _WANTED)
    return found.found, found.dropped.total()


def accuracy(answered: Sequence[Answered]) -> Accuracy:
    """Over at least one question."""
    number = len(answered)
    share = sum(one.right(per_byte=False) for one in answered) / number
    per_byte = sum(one.right(per_byte=True) for one in answered) / number
    return Accuracy(share, math.sqrt(share * (1 - share) / number), per_byte, number)


def answer_all(model: Any, tokenizer: Any, questions: Sequence[Question], *, max_length: int, batch_tokens: int) -> list[Answered]:
    """What the model makes of each question; of a prompt that is too long the end is read.

    Raises ValueError for a conversation where the tokenizer has no chat template.
    """
    pieces, owners, sizes = [], [], []
    for index, question in enumerate(questions):
        prompt, choices = _rendered(question, tokenizer)
        before = tokenizer.encode(prompt, add_special_tokens=False)
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        before = before if isinstance(question.prompt, list) or first is None else [first, *before]
        sizes.append(tuple(len(choice.encode()) for choice in question.choices))
        for choice in choices:
            after = tokenizer.encode(choice, add_special_tokens=False)[:max_length]
            room = max(1, max_length + 1 - len(after))
            pieces.append((len(owners), [*before[-room:], *after], min(room, len(before))))
            owners.append(index)
    nats: list[list[float]] = [[] for _ in questions]
    for place, value in sorted(nats_of(model, pieces, batch_tokens)):
        nats[owners[place]].append(value)
    return [Answered(tuple(n), size, question.answer) for n, size, question in zip(nats, sizes, questions, strict=True)]


def _rendered(question: Question, tokenizer: Any) -> tuple[str, list[str]]:
    """(prompt, choices) as the model reads them."""
    if isinstance(question.prompt, str):
        return question.prompt, list(question.choices)
    if not tokenizer.chat_template:
        raise ValueError(
            "tasks: the questions are conversations, and the model's tokenizer has no chat template; give them as prompt and choices"
        )
    whole = [[*question.prompt, {"role": "assistant", "content": choice}] for choice in question.choices]
    try:
        prompt = tokenizer.apply_chat_template(question.prompt, tokenize=False, add_generation_prompt=True)
        return prompt, [tokenizer.apply_chat_template(one, tokenize=False).removeprefix(prompt) for one in whole]
    except TemplateError as error:
        raise ValueError(f"tasks: the model's chat template refuses a question ({error}); give prompt and choices as texts") from None


def _parse(line: str) -> Question:
    """The question on one line; ValueError with a short reason."""
    try:
        data = json.loads(line)
    except ValueError:
        raise ValueError("not_json") from None
    if isinstance(data, dict) and "chosen" in data:
        chosen, rejected = parse_pair(line)
        return Question(chosen[:-1], (chosen[-1]["content"], rejected[-1]["content"]), 0)
    return _of_choices(data)


def _of_choices(data: Any) -> Question:
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list) or len(choices) < 2 or not all(is_text(choice) and choice for choice in choices):
        raise ValueError("no_choices")
    if len(set(choices)) < len(choices):
        raise ValueError("same_choice")
    if not is_text(data.get("prompt")) or not data["prompt"]:
        raise ValueError("no_prompt")
    answer = data.get("answer")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError("no_answer")
    return Question(data["prompt"], tuple(choices), answer)
