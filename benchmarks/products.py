"""A model's matrix products, on our kernels and on torch's, side by side: `python -m benchmarks.products`.

Promise: for each shape and number of tokens, the fastest of a few passes of every system, interleaved, so that a busy machine slows all
alike; each pass goes through copies of the matrix that together exceed the last cache, so few tokens are fed from RAM as in a model.
With one thread the CPU's own time is taken, which other programs on the machine do not lengthen.
Price: a minute or two, and 1.5 GiB. Shapes [N, K] are a 135M Llama's (576 wide) and a 1B Llama's (2048 wide).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from serve.engine.linear import Dense, Grouped, Int8, Linear, Stored, fuse
from serve.engine.quantised import Scheme

SHAPES = ["960x576", "576x576", "3072x576", "576x1536", "49152x576", "3072x2048", "2048x2048", "16384x2048", "2048x8192", "128256x2048"]
TOKENS = [1, 4, 8, 16, 32, 128, 512]
INT8, INT4 = Scheme(8), Scheme(4, 64)
PASS_BYTES = 160e6
"""Weights a system goes through in one pass: the systems together push each other out of the last cache."""
PASS_FLOPS = 4e9
"""Most work in one pass: many tokens need no fresh weights."""
MOST_FLOPS = 60e9
"""A product larger than this (a head over a whole prompt) is left out: no engine computes it."""


def random_bytes(rows: int, columns: int) -> Tensor:
    return torch.randint(0, 256, (rows, columns), dtype=torch.uint8)


def makers(n: int, k: int) -> dict[str, Callable[[], Linear]]:
    """Each system by name, and how to make a matrix for it; the first is what the others are compared with."""
    weight = torch.randn(n, k).div_(k**0.5).bfloat16()
    bytes8, bytes4 = random_bytes(n, k), random_bytes(n, k // 2)
    scale8, scale4 = torch.full((n, 1), 0.01).bfloat16(), torch.full((n, k // 64), 0.01).bfloat16()

    def plain() -> Linear:
        own = weight.clone()
        return lambda x: linear(x, own)

    return {
        "bf16": lambda: fuse([Stored(weight)], native=True),
        "int8": lambda: fuse([Stored(bytes8, None, INT8, k, scale8)], native=True),
        "int4": lambda: fuse([Stored(bytes4, None, INT4, k, scale4)], native=True),
        "F.linear": plain,
        "oneDNN": lambda: Dense(weight),
        "torch int8": lambda: Int8(bytes8.view(torch.int8).clone(), scale8),
        "torch int4": lambda: Grouped(bytes4, INT4, k, scale4),
    }


def measure(n: int, k: int, tokens: list[int], repeats: int) -> dict[int, dict[str, float]]:
    """Seconds per product: {tokens: {system: seconds}}."""
    weight_bytes = {"int8": n * k, "torch int8": n * k, "int4": n * k / 2, "torch int4": n * k / 2}
    layers = {
        name: [make() for _ in range(max(1, round(PASS_BYTES / weight_bytes.get(name, 2 * n * k))))] for name, make in makers(n, k).items()
    }
    found: dict[int, dict[str, float]] = {}
    for m in tokens:
        if 2 * n * k * m > MOST_FLOPS:
            continue
        x, best = torch.randn(m, k).bfloat16(), dict.fromkeys(layers, float("inf"))
        most = len(layers["bf16"]) * 4 if m <= 16 else max(1, int(PASS_FLOPS / (2 * n * k * m)))
        for _ in range(repeats):
            for name, copies in layers.items():
                best[name] = min(best[name], seconds(copies[:most], x))
        found[m] = best
    return found


def seconds(layers: list[Linear], x: Tensor) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    for layer in layers:
        layer(x)
    return (clock() - began) / len(layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="N x K")
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    figures = {}
    for shape in chosen.shapes:
        n, k = (int(side) for side in shape.split("x"))
        figures[shape] = measure(n, k, chosen.tokens, chosen.repeats)
        for m, best in figures[shape].items():
            ours = best["bf16"]
            others = "  ".join(f"{name} {1e3 * each:8.3f} ({each / ours:4.2f})" for name, each in best.items())
            print(f"{shape:>12} x {m:3}: ms (in units of ours in bf16)  {others}  {2e-9 * n * k / ours:5.1f} GB/s", flush=True)
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
