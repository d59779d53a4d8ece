"""Requests that arrive as in a real service: the Azure conversation trace, scaled to what a small machine bears.

Promise: lengths and gaps are the trace's own, in its order; lengths are multiplied by one factor and clipped to the context, gaps
by another, so that the mean rate is the one asked for. Every system is given the same requests at the same times. Pure but for reading
the file. Source: Azure LLM inference trace 2023, conversations (Patel et al., Splitwise, arXiv 2311.18677).
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.intervals import percentile

__all__ = ["Arrival", "at_rate", "latencies", "questions", "read_trace", "shorten"]

LONGEST_PROMPT, LONGEST_OUTPUT = 384, 128
SHRINK = 0.25
"""The trace's mean prompt is 1,155 tokens and its mean output 211; a quarter of both fits a context of 512."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of the trace."""

    at_s: float
    num_prompt: int
    num_output: int


def read_trace(file: Path, count: int, skip: int = 0) -> list[Arrival]:
    """`count` consecutive requests of the trace, the first at 0 seconds."""
    with file.open(newline="") as lines:
        rows = list(islice(csv.DictReader(lines), skip, skip + count))
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    return [Arrival(at - times[0], int(row["ContextTokens"]), int(row["GeneratedTokens"])) for at, row in zip(times, rows, strict=True)]


def shorten(trace: Sequence[Arrival]) -> list[Arrival]:
    """Lengths times SHRINK, at least 4 tokens, clipped.

    >>> shorten([Arrival(0.0, 400, 40), Arrival(1.0, 9000, 900)])
    [Arrival(at_s=0.0, num_prompt=100, num_output=10), Arrival(at_s=1.0, num_prompt=384, num_output=128)]
    """
    prompt = lambda n: min(LONGEST_PROMPT, max(4, round(n * SHRINK)))  # noqa: E731
    output = lambda n: min(LONGEST_OUTPUT, max(4, round(n * SHRINK)))  # noqa: E731
    return [Arrival(a.at_s, prompt(a.num_prompt), output(a.num_output)) for a in trace]


def at_rate(trace: Sequence[Arrival], requests_per_s: float) -> list[Arrival]:
    """The same requests with all gaps scaled so that their mean rate is `requests_per_s`.

    >>> [a.at_s for a in at_rate([Arrival(0.0, 1, 1), Arrival(3.0, 1, 1), Arrival(4.0, 1, 1)], 1.0)]
    [0.0, 1.5, 2.0]
    """
    span = trace[-1].at_s
    factor = (len(trace) - 1) / requests_per_s / span if span else 0.0
    return [Arrival(a.at_s * factor, a.num_prompt, a.num_output) for a in trace]


def questions(trace: Sequence[Arrival], vocab_size: int, seed: int = 0) -> list[dict[str, Any]]:
    """The requests as a worker takes them, their prompts random tokens."""
    rng = random.Random(seed)
    return [{"prompt": [rng.randrange(4, vocab_size) for _ in range(a.num_prompt)], "tokens": a.num_output, "at": a.at_s} for a in trace]


def latencies(reply: dict[str, Any]) -> dict[str, float]:
    """A worker's reply as figures: tokens/s over the whole, and in seconds the time to first token and between tokens."""
    answers = reply["answers"]
    first = [a["times"][0] for a in answers]
    gaps = [later - sooner for a in answers for sooner, later in zip(a["times"], a["times"][1:], strict=False)]
    return {
        "tokens_per_s": sum(len(a["tokens"]) for a in answers) / reply["seconds"],
        "seconds": reply["seconds"],
        "ttft_p50_s": percentile(first, 50),
        "ttft_p99_s": percentile(first, 99),
        "gap_p50_s": percentile(gaps, 50),
        "gap_p99_s": percentile(gaps, 99),
    }
