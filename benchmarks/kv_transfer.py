"""What moving a request's KV costs each engine, beside computing it again.

Promise: two real engines in one process, a prompt of `--tokens`; every slice's seconds are measured, and the least over rounds of the whole
is told, the longest call of that round beside it (for so long the engine's thread does not step). The request's next tokens are compared
with those of the engine that it left. Price: a minute per model. Prints one table; `--json FILE` keeps the figures.

    python -m benchmarks.kv_transfer --model FOLDER --tokens 1024 --json runs/kv_transfer.json
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.kv_blocks import KvBlocks, slices
from serve.engine.request import Request, Sampling

ROUNDS = 5
SAMPLING = Sampling(temperature=0, max_tokens=40, ignore_eos=True)


def begin(engine: Engine, request: Request) -> float:
    """Seconds until a request has told its first token."""
    engine.add(request)
    began = time.perf_counter()
    while not any(emission.tokens for emission in engine.step()):
        pass
    return time.perf_counter() - began


def moved(source: Engine, destination: Engine, name: str) -> dict[str, float]:
    """Copy a live request's blocks by slices; milliseconds, and the longest call."""
    hashes, spent = source.kv_chain(name), {"out": 0.0, "wire": 0.0, "in": 0.0, "longest": 0.0}
    for first, last in slices(0, len(hashes), source.runner.cache.bytes_per_block):
        times = [time.perf_counter()]
        blocks = source.kv_out(name, first, last)
        times.append(time.perf_counter())
        arrived = through_a_pickle(blocks)
        times.append(time.perf_counter())
        assert destination.kv_in(name, arrived) == last - first, "no room"
        times.append(time.perf_counter())
        took = [1000 * (b - a) for a, b in pairwise(times)]
        for key, milliseconds in zip(("out", "wire", "in"), took, strict=True):
            spent[key] += milliseconds
        spent["longest"] = max(spent["longest"], took[0], took[2])
    return spent


def through_a_pickle(blocks: KvBlocks) -> KvBlocks:
    """As Ray carries it: the bytes out of band, copied once (into the object store), read-only at the other end."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(blocks, protocol=5, buffer_callback=buffers.append)
    carried: KvBlocks = pickle.loads(body, buffers=[bytes(buffer) for buffer in buffers])
    return carried


def forget(engine: Engine, ticket: str) -> None:
    """Unpin, and let other content push everything out of the prefix cache."""
    engine.kv_release(ticket)
    pool = engine.scheduler.pool
    pool.release([pool.allocate() for _ in range(pool.num_available)])


def measure(folder: Path, num_tokens: int, fields: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    config = EngineConfig(num_threads=1, draft="off", num_blocks=2 * (num_tokens // 16 + 8), **fields)
    source, destination = (Engine.load(folder, config) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    prompt = tuple(torch.randint(1000, source.shape.vocab_size, (num_tokens,), generator=generator).tolist())
    prefill_s = begin(source, Request(id="r", prompt=prompt, sampling=SAMPLING))
    rounds = []
    for _ in range(ROUNDS):
        forget(destination, "r")
        rounds.append(moved(source, destination, "r"))
    best = min(rounds, key=lambda spent: spent["out"] + spent["in"])
    resume_s = begin(destination, source.snapshot("r").request())
    assert destination.stats()["prefill_tokens"] <= config.block_size
    for engine in (source, destination):
        while len(engine.snapshot("r").emitted) < 20:
            engine.step()
    assert destination.snapshot("r").emitted[:20] == source.snapshot("r").emitted[:20], "not the same tokens"
    size = len(source.kv_chain("r")) * source.runner.cache.bytes_per_block
    return {
        "model": folder.name,
        "kv_kind": source.runner.cache.kv_kind,
        "block_KiB": source.runner.cache.bytes_per_block / 1024,
        "MB": num_tokens // 16 * source.runner.cache.bytes_per_block / 1e6,
        "out_GB_s": size / best["out"] / 1e6,
        "in_GB_s": size / best["in"] / 1e6,
        "wire_ms": best["wire"],
        "longest_ms": best["longest"],
        "moved_ms": best["out"] + best["in"] + 1000 * resume_s,
        "computed_again_ms": 1000 * prefill_s,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, action="append", help="a model folder; may be given again")
    parser.add_argument("--tokens", type=int, default=1024, help="length of the prompt whose KV moves")
    parser.add_argument("--set", action="append", default=[], help="one row's settings, as JSON; by default bf16, int8 KV and float32")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    given = parser.parse_args()
    settings = [json.loads(text) for text in given.set] or [
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "kv_dtype": "int8"},
        {"dtype": "float32"},
    ]
    rows = [measure(folder, given.tokens, fields) for folder in given.model for fields in settings]
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()) + " |", flush=True)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
