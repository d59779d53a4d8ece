"""What the engine itself costs per step and sequence: scheduling, sampling, text, emission, with a model that costs nothing.

Promise: the engine's own loop with a runner that returns ready logits, on a real tokenizer; each figure is the least over rounds, the
sizes taken in turn within a round. Price: seconds. Prints one table; `--json FILE` keeps the figures.

    python -m benchmarks.overhead --model FOLDER --json runs/overhead.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from serve.engine.batch import Batch
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Request, Sampling
from serve.engine.text import Tokenizer
from serve.engine.toy import ToyRunner

SIZES = (1, 8, 16)
SAMPLINGS = {"greedy": Sampling(temperature=0, max_tokens=4_000), "sampled": Sampling(temperature=0.8, seed=0, max_tokens=4_000)}


class ReadyRunner(ToyRunner):
    """Logits drawn beforehand."""

    def __init__(self, vocab_size: int, num_blocks: int, block_size: int) -> None:
        super().__init__(vocab_size=vocab_size, num_blocks=num_blocks, block_size=block_size)
        logits = torch.randn(64, 16, vocab_size, generator=torch.Generator().manual_seed(0)) * 4
        logits[..., :64] = -100.0  # no end token, nothing special
        self._ready = list(logits)
        self._num_runs = 0

    def run(self, batch: Batch) -> Tensor:
        """The next of them."""
        self._num_runs += 1
        return self._ready[self._num_runs % 64][: len(batch.sampling)]


def step_seconds(folder: Path, size: int, sampling: Sampling, num_steps: int) -> float:
    """Mean seconds of a step of `size` decoding sequences."""
    tokenizer = Tokenizer(folder)
    runner = ReadyRunner(tokenizer.vocab_size, num_blocks=4096, block_size=16)
    config = EngineConfig(draft="off", max_sequences=max(SIZES), num_blocks=4096)
    engine = Engine(runner, tokenizer, config, "ready", 1 << 20)  # type: ignore[arg-type]
    for i in range(size):
        engine.add(Request(id=str(i), prompt=tuple(range(100 + i, 164 + i)), sampling=sampling))
    for _ in range(20):
        engine.step()
    began = time.perf_counter()
    for _ in range(num_steps):
        engine.step()
    return (time.perf_counter() - began) / num_steps


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder with a tokenizer.json")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    least: dict[tuple[str, int], float] = {}
    for _ in range(options.rounds):
        for name, sampling in SAMPLINGS.items():
            for size in SIZES:
                seconds = step_seconds(options.model, size, sampling, options.steps)
                least[name, size] = min(seconds, least.get((name, size), seconds))
    rows = [{"sampling": n, "sequences": s, "step_us": t * 1e6, "sequence_us": t * 1e6 / s} for (n, s), t in least.items()]
    print(f"{'sampling':10}{'sequences':>10}{'step':>9}{'each':>8}   microseconds")
    for row in rows:
        print(f"{row['sampling']:10}{row['sequences']:10}{row['step_us']:9.1f}{row['sequence_us']:8.1f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
