"""A service measured as its clients see it: over HTTP, streaming, with drafts and without.

Promise: every figure is read at the client (time to first token, time between tokens, tokens per second); the two
variants answer the same requests greedily, so their tokens must agree wherever the model's margin exceeds the numeric
noise, and the share that does is reported. Price: two deployments and `num_requests` completions per concurrency each.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from cluster import figure
from cluster.artifact import Artifact, finished, open_artifact, publish
from cluster.console import progress, say
from cluster.runtime import attached
from cluster.storage import digest_of
from pipelines.config import TrialConfig
from serve.app import free_port, running
from serve.config import ServeConfig
from train.model_folder import open_model

__all__ = ["Stream", "load", "read_prompts", "trial"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """One completion as its client saw it."""

    text: str
    first_s: float
    """Seconds from the request to the first text."""
    gaps_s: tuple[float, ...]
    """Seconds between later pieces of text."""
    total_s: float
    num_tokens: int


def read_prompts(path: str, at_most: int) -> list[str]:
    """`prompt` of the first `at_most` lines of a jsonl file; ValueError names the line that has none."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; prompts are jsonl lines with a `prompt`")
    prompts: list[str] = []
    with Path(path).open("rb") as lines:  # bytes: JSON may hold what else Unicode calls a line boundary as it is
        for number, line in enumerate(itertools.islice(lines, at_most), 1):
            try:
                prompts.append(str(json.loads(line)["prompt"]))
            except (ValueError, RecursionError, KeyError, TypeError):
                raise ValueError(f'{path}:{number}: not a JSON object with a "prompt"') from None
    if not prompts:
        raise ValueError(f"{path}: holds no prompts")
    return prompts


def trial(config: TrialConfig) -> Artifact:
    """Serve `config.model`, measure it with drafts as configured and with drafts off, and write the figures."""
    folder, digest = open_model(config.model)
    prompts = read_prompts(config.prompts, config.num_requests)
    inputs = {"model": digest, "prompts": digest_of(prompts)}
    if done := finished(config.output, stage="trial", inputs=inputs, config=config):
        say(f"trial: {config.output} is already done")
        return done
    variants = list(dict.fromkeys((config.engine.draft, "off")))
    with publish(config.output, stage="trial", inputs=inputs, config=config) as draft, attached():
        results: dict[str, dict[int, list[Stream]]] = {}
        wall: dict[tuple[str, int], float] = {}
        with progress("trial", len(variants) * len(config.concurrency) * len(prompts), "requests") as advance:
            for variant in variants:
                service = ServeConfig(model=str(folder), port=free_port(), engine=replace(config.engine, draft=variant))
                with running(service) as url:
                    asyncio.run(load(url, prompts[:2], 1, config.max_tokens))  # warm: first-use costs are not the service's speed
                    for concurrency in config.concurrency:
                        began = time.perf_counter()
                        streams = asyncio.run(load(url, prompts, concurrency, config.max_tokens, advance))
                        wall[variant, concurrency] = time.perf_counter() - began
                        results.setdefault(variant, {})[concurrency] = streams
        rows = [_row(variant, n, streams, wall[variant, n]) for variant, by_n in results.items() for n, streams in by_n.items()]
        (draft.dir / "streams.jsonl").write_text(_dump(results), encoding="utf-8")
        draft.counts = {"requests": sum(len(s) for by_n in results.values() for s in by_n.values())}
        draft.metrics = {"rows": [dict(zip(_COLUMNS, row, strict=True)) for row in rows], "agreement": _agreement(results, variants)}
        draft.figures = _figures(rows)
        draft.headline = _headline(rows, variants, min(config.concurrency))
    return open_artifact(config.output, made_by="trial")


async def load(url: str, prompts: Sequence[str], concurrency: int, max_tokens: int, advance: Any = None) -> list[Stream]:
    """Stream a greedy completion of every prompt, `concurrency` at a time; results in the order of the prompts."""
    gate = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        model = (await client.get("/models")).raise_for_status().json()["data"][0]["id"]

        async def one(prompt: str) -> Stream:
            async with gate:
                stream = await _complete(client, {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0})
            if advance:
                advance()
            return stream

        return await asyncio.gather(*(one(prompt) for prompt in prompts))


async def _complete(client: httpx.AsyncClient, body: dict[str, Any]) -> Stream:
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    began, times, pieces, num_tokens = time.perf_counter(), [], [], 0
    async with client.stream("POST", "/completions", json=body) as response:
        if response.status_code != 200:
            raise ValueError(f"the service answered {response.status_code}: {(await response.aread()).decode()[:300]}")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            num_tokens = (chunk.get("usage") or {}).get("completion_tokens", num_tokens)
            if chunk["choices"] and chunk["choices"][0]["text"]:
                times.append(time.perf_counter())
                pieces.append(chunk["choices"][0]["text"])
    ended = time.perf_counter()
    gaps = tuple(b - a for a, b in itertools.pairwise(times))
    first = times[0] - began if times else ended - began
    return Stream(text="".join(pieces), first_s=first, gaps_s=gaps, total_s=ended - began, num_tokens=num_tokens)


_COLUMNS = (
    "drafts",
    "clients",
    "tokens per second",
    "first token p50, ms",
    "first token p99, ms",
    "stream gap p50, ms",
    "stream gap p99, ms",
)


def _row(variant: str, concurrency: int, streams: list[Stream], wall_s: float) -> list[Any]:
    firsts, gaps = [s.first_s for s in streams], [g for s in streams for g in s.gaps_s] or [0.0]
    tokens_per_s = sum(s.num_tokens for s in streams) / wall_s
    return [variant, concurrency, round(tokens_per_s, 1), *(round(1e3 * v, 1) for v in (*_p50_p99(firsts), *_p50_p99(gaps)))]


def _p50_p99(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def _agreement(results: dict[str, dict[int, list[Stream]]], variants: list[str]) -> float:
    """Share of greedy completions whose text is the same with drafts and without."""
    pairs = [(a.text, b.text) for n, first in results[variants[0]].items() for a, b in zip(first, results[variants[-1]][n], strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def _dump(results: dict[str, dict[int, list[Stream]]]) -> str:
    rows = ({"drafts": v, "clients": n, "text": s.text, "tokens": s.num_tokens, "first_s": s.first_s, "total_s": s.total_s}
            for v, by_n in results.items() for n, streams in by_n.items() for s in streams)  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)


def _figures(rows: list[list[Any]]) -> dict[str, figure.Figure]:
    groups: dict[str, dict[str, float]] = {}
    for variant, concurrency, speed, *_ in rows:
        groups.setdefault(f"drafts: {variant}", {})[f"{concurrency} clients"] = speed
    return {
        "speed": figure.bars("Tokens per second over HTTP, with drafts and without", "tokens per second", groups),
        "latency": figure.table("Latency at the client", _COLUMNS, rows),
    }


def _headline(rows: list[list[Any]], variants: list[str], clients: int) -> str:
    speed = {(row[0], row[1]): row[2] for row in rows}
    on, off = speed[variants[0], clients], speed[variants[-1], clients]
    return f"{on:,.0f} tokens/s to {clients} client{'s' * (clients > 1)} over HTTP, {on / off:.2f}× of drafts off"
