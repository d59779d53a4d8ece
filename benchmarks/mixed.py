"""Mixed random requests on engines with too few blocks, some cancelled, some moved: what `soak.py` runs for half an hour.

Promise: seeded; an episode ends with idle engines whose invariants have been checked, and a sample of its finished requests asked again,
alone, of an engine that nothing disturbs. A broken invariant raises at once, differences are counted. Price: all of ENGINES in memory.
"""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Emission, Request, Sampling
from serve.engine.snapshot import Snapshot

__all__ = ["ENGINES", "Account", "Mixed"]

COMMON: dict[str, Any] = {
    "num_blocks": 48,
    "max_sequences": 8,
    "max_tokens_per_step": 128,
    "max_length": 512,
    "swap_bytes": 8 << 20,
    "draft_shared": 2000,
}
ENGINES: dict[str, dict[str, Any]] = {
    "first come, recompute": {"preempt": "recompute"},
    "fair, swap": {"policy": "fair", "preempt": "swap"},
    "shortest, swap, no prefixes": {"policy": "shortest", "preempt": "swap", "prefix_cache": False},
    "fair, recompute, no drafts": {"policy": "fair", "preempt": "recompute", "draft": "off"},
    "int8 KV, swap": {"kv_dtype": "int8", "preempt": "swap"},
}
UNDISTURBED: dict[str, Any] = {"num_blocks": 40, "max_sequences": 1, "draft": "off", "prefix_cache": False, "max_length": 512}


@dataclass(slots=True)
class Story:
    """What has happened to one request."""

    request: Request
    began_s: float
    tokens: tuple[int, ...] = ()
    text: str = ""
    first_s: float | None = None
    reason: str | None = None
    moves: int = 0


@dataclass(slots=True)
class Account:
    """Counts over the whole run."""

    requests: int = 0
    tokens: int = 0
    cancelled: int = 0
    moved: int = 0
    compared: int = 0
    different: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the start, resident megabytes), after each episode."""


class Mixed:
    """The engines, their requests and the account."""

    def __init__(self, model: Path, texts: list[list[int]], seed: int, threads: int) -> None:
        make = lambda fields: Engine.load(model, EngineConfig(**{"num_threads": threads, **fields}))  # noqa: E731
        self.engines = {name: make(COMMON | fields) for name, fields in ENGINES.items()}
        self.alone = {kv: make(UNDISTURBED | {"kv_dtype": kv}) for kv in ("auto", "int8")}
        self.texts, self.rng, self.account = texts, random.Random(seed), Account()
        self._names = (f"r{i}" for i in itertools.count())

    def request(self) -> Request:
        """A random request; a third of the prompts begin alike."""
        rng = self.rng
        text = rng.choice(self.texts[:4] if rng.random() < 0.35 else self.texts)
        prompt = text[: rng.choice([rng.randrange(2, 40), rng.randrange(40, 330)])]
        fields: dict[str, Any] = {
            "max_tokens": rng.randrange(5, 120),
            "temperature": rng.choice([0.0, 0.0, 0.8]),
            "seed": rng.getrandbits(62),
        }
        extras: list[dict[str, Any]] = [
            {"top_k": 20, "top_p": 0.95},
            {"min_p": 0.05},
            {"repetition_penalty": 1.2, "frequency_penalty": 0.3},
            {"presence_penalty": 0.5, "logit_bias": ((260, 2.0), (300, -50.0))},
            {"stop": ("\n\n", "return")},
            {"logprobs": 2},
            {"ignore_eos": True},
            {"min_tokens": 5},
        ]
        for extra in extras:
            if rng.random() < 0.15:
                fields |= extra
        if rng.random() < 0.06:
            fields |= rng.choice([{"regex": "[a-z]{2,9}( [a-z]{2,9}){1,6}"}, {"json_schema": '{"type": "object"}'}])
        return Request(
            id=next(self._names),
            prompt=tuple(prompt),
            sampling=Sampling(**fields),
            tenant=rng.choice(["", "", "other"]),
            client=rng.choice(["", "anna", "ben"]),
            priority=rng.choice([0, 0, 0, 0, 1]),
        )

    def episode(self) -> None:
        """Random requests to one engine (and, moved, to a second) until both are idle; then the checks."""
        rng, stories = self.rng, {}
        pair = rng.sample([n for n in self.engines if "int8" not in n], 2) if rng.random() < 0.8 else ["int8 KV, swap"]
        to_come = rng.randrange(4, 40)
        engines = [self.engines[name] for name in pair]
        while to_come or any(engine.has_work for engine in engines):
            while to_come and rng.random() < 0.5:
                to_come -= 1
                request = self.request()
                stories[request.id] = Story(request, time.perf_counter())
                engines[0].add(request)
            self._disturb(engines, stories)
            for engine in engines:
                for emission in engine.step():
                    self._note(stories[emission.request_id], emission)
        self._settle(engines, stories)

    def _disturb(self, engines: list[Engine], stories: dict[str, Story]) -> None:
        """Cancel or move a random live request, now and then."""
        live = [s for s in stories.values() if s.reason is None]
        if not live or self.rng.random() > 0.06:
            return
        story = self.rng.choice(live)
        holder = next(e for e in engines if story.request.id in e._live)
        if self.rng.random() < 0.5:
            assert holder.cancel(story.request.id)
            return
        snapshot = Snapshot.from_json(holder.snapshot(story.request.id).to_json())
        assert holder.cancel(story.request.id)
        for emission in holder.step():
            if emission.request_id == story.request.id:
                assert emission.finish_reason == "cancelled"
            else:
                self._note(stories[emission.request_id], emission)
        story.moves += 1
        self.rng.choice(engines).add(snapshot.request())

    def _note(self, story: Story, emission: Emission) -> None:
        assert story.reason is None, f"{story.request.id}: news after its end"
        if emission.tokens and story.first_s is None:
            story.first_s = time.perf_counter() - story.began_s
        story.tokens += emission.tokens
        story.text += emission.text
        story.reason = emission.finish_reason

    def _settle(self, engines: list[Engine], stories: dict[str, Story]) -> None:
        """Every request has ended; idle engines hold nothing; a sample says the same when nothing disturbs it."""
        account = self.account
        for engine in engines:
            engine.check()
        ended = [s for s in stories.values() if s.reason != "cancelled"]
        assert all(s.reason for s in ended), "a request never ended"
        account.requests += len(stories)
        account.cancelled += len(stories) - len(ended)
        account.moved += sum(s.moves > 0 for s in stories.values())
        account.tokens += sum(len(s.tokens) for s in stories.values())
        account.waits_s += [s.first_s for s in ended if s.first_s is not None]
        alone = self.alone[engines[0].config.kv_dtype]
        for story in self.rng.sample(ended, min(2, len(ended))):
            self._compare(alone, story)

    def _compare(self, alone: Engine, story: Story) -> None:
        again = replace(story.request, id="alone")
        alone.add(again)
        told = Story(again, 0.0)
        while alone.has_work:
            for emission in alone.step():
                self._note(told, emission)
        self.account.compared += 1
        same_text = story.moves or told.text == story.text  # a moved request's text is cut where it moved; its tokens are whole
        if (told.tokens, told.reason) != (story.tokens, story.reason) or not same_text:
            self.account.different.append(f"{story.request.id} ({story.moves} moves): {story.request.sampling}")
