"""What every measured system speaks: one JSON object a line in, one a line out, token ids only.

Promise: a worker holds one model, answers one question at a time, and sleeps on its pipe between them, so that several loaded workers
on one machine do not disturb the one that is asked. Times are taken inside the worker, per request and per step, by one code for all
systems that can be driven step by step. Price: a line of JSON per question. It imports nothing but the standard library, for it runs
in the environment of each system.

    {"do": "load", "model": FOLDER, "options": {…}}                         -> {"load_s": …}
    {"do": "serve", "requests": [{"prompt": [ids], "tokens": n, "at": s}]}  -> {"seconds": …, "answers": [Answer, …]}
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

__all__ = ["Answer", "Question", "Stepped", "System", "drive", "work"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request."""

    prompt: list[int]
    """Token ids."""
    tokens: int
    """How many tokens to make; the end token does not end it."""
    at: float = 0.0
    """Seconds after the start at which it arrives."""
    temperature: float = 0.0
    seed: int = 0
    end: bool = False
    """Whether the model's end token ends it after all."""


@dataclass(slots=True)
class Answer:
    """What came back and when: `counts[i]` tokens at `times[i]` seconds after the request's arrival."""

    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def more(self, tokens: list[int], at: float) -> None:
        """Note new tokens."""
        self.tokens += tokens
        self.counts.append(len(tokens))
        self.times.append(at)


class System(Protocol):
    """A system under measurement."""

    def load(self, model: str, options: dict[str, Any]) -> None:
        """Make a model ready to answer."""

    def serve(self, questions: list[Question]) -> list[Answer]:
        """Answer all questions, each from its arrival on."""


class Stepped(Protocol):
    """A system that can be driven step by step."""

    def add(self, index: int, question: Question) -> None:
        """A request arrives."""

    def step(self) -> Iterator[tuple[int, list[int], bool]]:
        """One step: (index, new tokens, whether that was the last) for each request with news."""


def drive(system: Stepped, questions: list[Question]) -> list[Answer]:
    """Answer questions at their arrival times by stepping: what has arrived is added before each step; with nothing to do it waits."""
    answers = [Answer() for _ in questions]
    order = sorted(range(len(questions)), key=lambda i: questions[i].at)
    began, live, arrived = time.perf_counter(), 0, 0
    while live or arrived < len(order):
        now = time.perf_counter() - began
        while arrived < len(order) and questions[order[arrived]].at <= now:
            system.add(order[arrived], questions[order[arrived]])
            arrived, live = arrived + 1, live + 1
        if not live:
            time.sleep(max(0.0, questions[order[arrived]].at - (time.perf_counter() - began)))
            continue
        for index, tokens, ended in system.step():
            if tokens:
                answers[index].more(tokens, time.perf_counter() - began - questions[index].at)
            live -= ended
    return answers


def work(system: System) -> None:
    """Answer questions from standard input until it closes. What libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = _reply(system, json.loads(line))
        except Exception as error:  # told to the one who asked, with where it happened on standard error
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        print(json.dumps(reply), file=replies)


def _reply(system: System, ask: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    if ask["do"] == "load":
        system.load(ask["model"], ask.get("options", {}))
        return {"load_s": time.perf_counter() - began}
    answers = system.serve([Question(**q) for q in ask["requests"]])
    return {"seconds": time.perf_counter() - began, "answers": [asdict(a) for a in answers]}
