"""Measuring: all systems in turn within each round, on the same prompts; figures of a round as plain data.

Promise: a round asks every system for every batch size before the next round begins, and each round starts with another system; the
machine's read bandwidth is measured in every round too. A system that fails is left out from then on, with its reason. Price: time.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

from benchmarks.bandwidth import read_bandwidth
from benchmarks.load import latencies
from benchmarks.systems import NotThere, Worker
from cluster.console import say

__all__ = ["code_tokens", "one_load", "one_round", "warm_up"]

RAM_BYTES = 1 << 30
"""Read to measure the bandwidth of RAM: well beyond any last cache (260 MB where this was written)."""
AWAKE = 16
"""Tokens of a prompt asked before each turn, unmeasured: while the others had theirs, the kernel may have put a worker's memory away."""
Figures = dict[str, dict[str, Any]]


def code_tokens(model: Path, prompts: Path | None, vocab_size: int, count: int, seed: int) -> list[int]:
    """`count` tokens of real code (problems of a jsonl file, from a place that `seed` chooses); random ones without a file."""
    rng = random.Random(seed)
    if prompts is None or not prompts.exists():
        return [rng.randrange(4, vocab_size) for _ in range(count)]
    from tokenizers import Tokenizer

    with gzip.open(prompts, "rt") if prompts.suffix == ".gz" else prompts.open() as lines:
        rows = [json.loads(line) for line in lines]
    text = "\n\n".join(row["prompt"] + row["canonical_solution"] for row in rows)
    tokens: list[int] = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    start = rng.randrange(len(tokens))
    return (tokens * 2)[start : start + count]


def requests(tokens: list[int], batch: int, num_prompt: int, num_output: int) -> list[dict[str, Any]]:
    """`batch` requests of equal lengths that arrive together."""
    return [{"prompt": tokens[i * num_prompt : (i + 1) * num_prompt], "tokens": num_output} for i in range(batch)]


def warm_up(workers: list[Worker], tokens: list[int], batches: list[int], num_prompt: int) -> dict[str, str]:
    """Load every system and let it compile what it compiles; why some are not there."""
    missing = {}
    for worker in workers:
        try:
            for batch in batches:
                worker.ask(requests(tokens, batch, num_prompt, 8))
        except NotThere as reason:
            say(str(reason))
            missing[worker.spec.name] = str(reason)
    return missing


def one_round(index: int, workers: list[Worker], tokens: list[int], plan: dict[str, Any], step_bytes: int) -> dict[str, Any]:
    """{"figures": {system: {batch: latencies}}, …}, the best of plan["repeats"] turns each; bandwidths in bytes per second."""
    figures: Figures = {worker.spec.name: {} for worker in workers}
    tokens_out: dict[str, list[list[int]]] = {}
    for batch in plan["batches"]:
        asked = requests(tokens, batch, plan["prompt"], plan["output"])
        turn = (index + batch) % len(workers)
        for worker in (workers[turn:] + workers[:turn]) * plan["repeats"]:
            worker.ask(requests(tokens, 1, AWAKE, 2))
            reply = worker.ask(asked)
            own, found = figures[worker.spec.name], latencies(reply)
            if str(batch) not in own or found["tokens_per_s"] > own[str(batch)]["tokens_per_s"]:
                own[str(batch)] = found
            if batch == plan["batches"][0]:
                tokens_out[worker.spec.name] = [a["tokens"] for a in reply["answers"]]
        told = ", ".join(f"{name} {rows[str(batch)]['tokens_per_s']:,.0f}" for name, rows in figures.items())
        say(f"round {index + 1}, batch {batch}: tokens/s {told}")
    return {
        "bandwidth_ram": read_bandwidth(RAM_BYTES, plan["threads"]),
        "bandwidth_here": read_bandwidth(min(step_bytes, RAM_BYTES), plan["threads"]),
        "agreement": _agreement(tokens_out),
        "figures": figures,
    }


def _agreement(tokens: dict[str, list[list[int]]]) -> dict[str, float]:
    """Per system, the share of each answer before its first token that differs from ours: that all computed the same model."""
    ours = tokens.get("sterna")
    if ours is None:
        return {}
    return {name: _mean([_common(a, b) / len(a) for a, b in zip(ours, theirs, strict=True)]) for name, theirs in tokens.items()}


def _common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def one_load(workers: list[Worker], asked: list[dict[str, Any]], index: int) -> Figures:
    """Figures of every system that takes arrivals, on the same requests at the same times."""
    figures: Figures = {}
    able = [worker for worker in workers if worker.spec.arrivals]
    turn = index % len(able)
    for worker in able[turn:] + able[:turn]:
        try:
            figures[worker.spec.name] = latencies(worker.ask(asked))
        except NotThere as reason:
            say(str(reason))
            figures[worker.spec.name] = {"not_there": str(reason)}
    return figures
