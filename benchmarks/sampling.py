"""What drawing tokens costs per step: the quick way of the CPU beside the plain distribution, which sorts and sums the whole vocabulary.

Promise: the same rows and options both ways, in turn within a round, the least over rounds; the quick way once more with float32 turned
to bfloat16, and with penalties or a grammar in every sequence. Rows are as peaked as a language model's (a few tokens hold most of the
mass). Price: a minute. Prints one table; `--json FILE` keeps the figures.

    python -m benchmarks.sampling --json runs/sampling.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from serve.engine.distribution import draw, processed
from serve.engine.request import Sampling
from serve.engine.rules import rules
from serve.engine.sample import Question, verify

VOCABS = (8_192, 49_152, 128_256)
BATCHES = (1, 8, 16)
OPTIONS = {
    "greedy": Sampling(temperature=0, seed=0),
    "temperature": Sampling(temperature=0.8, seed=0),
    "top_k 50": Sampling(temperature=0.8, top_k=50, seed=0),
    "top_p 0.95": Sampling(temperature=0.8, top_p=0.95, seed=0),
    "all three": Sampling(temperature=0.8, top_k=50, top_p=0.95, seed=0),
    "min_p 0.05": Sampling(temperature=0.8, min_p=0.05, seed=0),
}


def rows(vocab_size: int, batch: int) -> Tensor:
    """Logits [batch, vocab] whose sorted probabilities fall off as a power of the rank, with noise, in a random order."""
    generator = torch.Generator().manual_seed(vocab_size + batch)
    ranks = torch.stack([torch.randperm(vocab_size, generator=generator) for _ in range(batch)]) + 1
    return -1.8 * ranks.log() + 0.5 * torch.randn(batch, vocab_size, generator=generator)


def plainly(sampling: Sampling, logits: Tensor) -> None:
    """One sequence after the other, each through the whole distribution."""
    for row in logits.split(1):
        if sampling.temperature == 0:
            row.argmax(-1).tolist()
        else:
            draw(processed(row, [sampling]), [0.37]).tolist()


def ways(sampling: Sampling, logits: Tensor) -> dict[str, Callable[[], object]]:
    """What is timed: each draws one token per row."""
    batch, vocab_size = logits.shape
    prompt = list(range(100, 356))
    penalised = Sampling(
        **{**{name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p", "seed")}, "repetition_penalty": 1.1}
    )
    plain = [Question(sampling, 0, 300 + i, []) for i in range(batch)]
    ruled = [Question(penalised, 0, 300 + i, [], rules(penalised, prompt, [0], vocab_size)) for i in range(batch)]
    short = logits.bfloat16()
    return {
        "plain": lambda: plainly(sampling, logits),
        "quick": lambda: verify(plain, logits),
        "bfloat16": lambda: verify(plain, short),
        "penalty": lambda: verify(ruled, logits),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    print(f"{'vocabulary':>10}{'batch':>6}  {'options':12}{'plain':>10}{'quick':>9}{'bfloat16':>9}{'penalty':>9}   microseconds a step")
    for vocab_size in VOCABS:
        for batch in BATCHES:
            logits = rows(vocab_size, batch)
            for name, sampling in OPTIONS.items():
                timed = ways(sampling, logits)
                least = dict.fromkeys(timed, float("inf"))
                for _ in range(options.rounds):
                    for way, run in timed.items():
                        began = time.perf_counter()
                        run()
                        least[way] = min(least[way], (time.perf_counter() - began) * 1e6)
                found.append({"vocab_size": vocab_size, "batch": batch, "options": name, **least})
                print(f"{vocab_size:10}{batch:6}  {name:12}{least['plain']:10.0f}" + "".join(f"{least[w]:9.0f}" for w in list(timed)[1:]))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
