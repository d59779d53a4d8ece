"""The drill's clients: questions of every kind, asked over HTTP, and what was heard.

Promise: a `Heard` holds exactly what a client saw of one choice (token ids, text, log probabilities, the reason for the end, and
when each piece came); `difference` says in words what two runs of one question do not share. Price: one connection each.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx

__all__ = ["Heard", "Question", "ask_all", "difference", "hear", "heard_of", "questions"]

_LOGPROB_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Question:
    """One request and a name for its kind."""

    kind: str
    body: dict[str, Any]


@dataclass(slots=True)
class Heard:
    """One choice, as its client received it."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    times: list[float] = field(default_factory=list)
    """Unix seconds of each piece."""
    stream: str = ""
    """What the gateway's journal calls it."""

    @property
    def longest_silence_s(self) -> float:
        """The longest wait between two pieces."""
        return max((b - a for a, b in pairwise(self.times)), default=0.0)


def questions(prompts: Sequence[str], *, model: str, count: int, tokens: int, seed: int) -> list[Question]:
    """`count` requests of mixed sampling over the prompts, the same for the same arguments."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("greedy", {"temperature": 0}),
        ("seeded", {"temperature": 0.8, "seed": seed + 1}),
        ("two choices", {"temperature": 0.9, "top_p": 0.95, "n": 2, "seed": seed + 2}),
        ("stop strings", {"temperature": 0.7, "seed": seed + 3, "stop": ["\n#!", "\n\n\n\n\nclass"]}),
        ("logprobs", {"temperature": 0.6, "seed": seed + 4, "logprobs": 2}),
    ]
    common = {"model": model, "max_tokens": tokens, "stream": True, "ignore_eos": True, "return_token_ids": True}
    found = []
    for i in range(count):
        kind, sampling = kinds[i % len(kinds)]
        distinct = {"seed": sampling["seed"] + 100 * i} if "seed" in sampling else {}
        found.append(Question(kind, {**common, "prompt": prompts[i % len(prompts)], **sampling, **distinct}))
    return found


async def ask_all(url: str, asked: Sequence[Question]) -> list[list[Heard]]:
    """Ask all at once; per question, its choices. RuntimeError if a stream ends early or with an error."""
    heard = [heard_of(question) for question in asked]
    limits = httpx.Limits(max_connections=len(asked))
    async with httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(120.0), limits=limits, trust_env=False) as client:
        await asyncio.gather(*(hear(client, question, choices) for question, choices in zip(asked, heard, strict=True)))
    return heard


def heard_of(question: Question) -> list[Heard]:
    """The choices of a question of which nothing was heard yet."""
    return [Heard() for _ in range(question.body.get("n", 1))]


async def hear(client: httpx.AsyncClient, question: Question, choices: list[Heard]) -> None:
    """Ask, and hear each piece into its choice as it comes. RuntimeError if the stream ends early or with an error."""
    ended = False
    async with client.stream("POST", "completions", json=question.body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"a {question.kind} stream was refused: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                _hear(choices, json.loads(line.removeprefix("data: ")), question)
    if not ended or any(choice.finish_reason is None for choice in choices):
        raise RuntimeError(f"a {question.kind} stream was cut off after {[len(choice.tokens) for choice in choices]} tokens")


def _hear(choices: list[Heard], event: dict[str, Any], question: Question) -> None:
    if "error" in event:
        raise RuntimeError(f"a {question.kind} stream ended with an error: {event['error']['message']}")
    for part in event["choices"]:
        heard = choices[part["index"]]
        heard.stream = f"{event['id']}-{part['index']}"
        heard.tokens.extend(part.get("token_ids", ()))
        heard.text += part["text"]
        heard.logprobs.extend((part["logprobs"] or {}).get("token_logprobs", ()))
        heard.finish_reason = part["finish_reason"] or heard.finish_reason
        heard.times.append(time.time())


def difference(want: Heard, got: Heard) -> str:
    """What `got` does not share with the undisturbed run, in a few words; empty if nothing."""
    if want.tokens != got.tokens:
        shared = next((i for i, (a, b) in enumerate(zip(want.tokens, got.tokens, strict=False)) if a != b), None)
        where = f"token {shared} differs" if shared is not None else "one is the beginning of the other"
        return f"{len(got.tokens)} tokens for {len(want.tokens)}: {where}"
    if want.text != got.text:
        return f"the text differs: {len(got.text)} characters for {len(want.text)}"
    if want.finish_reason != got.finish_reason:
        return f"ended by {got.finish_reason}, not {want.finish_reason}"
    pairs = list(zip(want.logprobs, got.logprobs, strict=False))
    if len(want.logprobs) != len(got.logprobs) or any(not math.isclose(a, b, abs_tol=_LOGPROB_TOLERANCE) for a, b in pairs):
        return "log probabilities differ"
    return ""
