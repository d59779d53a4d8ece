"""The engine beside transformers' generate, on the same model, prompts, type and threads, in one process.

Promise: all systems run in turn within each round (so a busy machine is busy for all of them), the first round is thrown away, and
every ratio is the median over rounds of ratios within a round. Prints one table; `--json FILE` keeps the figures. Price: minutes.

    python -m benchmarks.engine --model FOLDER --prompts HumanEval.jsonl.gz --json runs/engine.json
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Sampling

PEER = "transformers"
Prompts = list[list[int]]


@dataclass(slots=True)
class System:
    """Something that completes a batch of prompts greedily, to their end tokens or `num_tokens`; returns the tokens made."""

    name: str
    complete: Callable[[Prompts, int], int]
    batches: tuple[int, ...] = (1, 8)
    tokens_per_s: dict[int, list[float]] = field(default_factory=dict)
    """By batch size, one figure per round."""


def engine_system(name: str, model: Path, dtype: str, draft: str) -> System:
    """Our engine; the prefix cache is off, for the rounds repeat the prompts."""
    engine = Engine.load(model, EngineConfig(dtype=dtype, draft=draft, prefix_cache=False))  # type: ignore[arg-type]

    def complete(prompts: Prompts, num_tokens: int) -> int:
        done = engine.generate(prompts, Sampling(temperature=0, max_tokens=num_tokens))
        return sum(len(completion.tokens) for completion in done)

    return System(name, complete)


def transformers_systems(model: Path, dtype: str) -> list[System]:
    """transformers' generate: plain in padded batches, and with prompt lookup (which takes one prompt at a time)."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    end = module.generation_config.eos_token_id
    end = end[0] if isinstance(end, list) else end

    def complete(prompts: Prompts, num_tokens: int, **how: Any) -> int:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            out = module.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=end, max_new_tokens=num_tokens, **how)
        ended = (out[:, width:] == end).int()
        return int((ended.cumsum(1) - ended == 0).sum())  # what follows a row's first end token is padding

    lookup = lambda prompts, num_tokens: complete(prompts, num_tokens, prompt_lookup_num_tokens=10)  # noqa: E731
    return [System(PEER, complete), System(f"{PEER}, prompt lookup", lookup, batches=(1,))]


def read_prompts(file: Path, engine_model: Path, count: int, longest: int) -> Prompts:
    """The first prompts of a jsonl file with a `prompt` column, as tokens."""
    from serve.engine.text import Tokenizer

    tokenizer = Tokenizer(engine_model)
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
        prompts = [tokenizer.encode(json.loads(line)["prompt"])[-longest:] for line in lines]
    return prompts[:count]


def measure(systems: list[System], prompts: Prompts, num_tokens: int, num_rounds: int) -> None:
    """Rounds of all systems in turn; round 0 warms up."""
    for round_index in range(num_rounds + 1):
        for batch in (1, 8):
            mine = prompts[:4] if batch == 1 else prompts[:batch]
            groups = [[p] for p in mine] if batch == 1 else [mine]
            for system in systems:
                if batch in system.batches:
                    began = time.perf_counter()
                    made = sum(system.complete(group, num_tokens) for group in groups)
                    speed = made / (time.perf_counter() - began)
                    if round_index:
                        system.tokens_per_s.setdefault(batch, []).append(speed)


def summary(systems: list[System], dtype: str) -> list[dict[str, Any]]:
    """One row per system and batch size."""
    peer = next(system for system in systems if system.name == PEER)
    rows = []
    for batch in (1, 8):
        for system in systems:
            if batch in system.batches:
                speeds = system.tokens_per_s[batch]
                ratios = [ours / theirs for ours, theirs in zip(speeds, peer.tokens_per_s[batch], strict=True)]
                rows.append(
                    {
                        "dtype": dtype,
                        "batch": batch,
                        "system": system.name,
                        "tokens_per_s": statistics.median(speeds),
                        "ratio": statistics.median(ratios),
                        "ratio_low": min(ratios),
                        "ratio_high": max(ratios),
                    }
                )
    return rows


def main() -> None:
    """Read the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face model folder")
    parser.add_argument("--prompts", type=Path, required=True, help="jsonl or jsonl.gz with a `prompt` column")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens to make for each prompt")
    parser.add_argument("--rounds", type=int, default=5, help="rounds counted")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for everyone")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prompts = read_prompts(args.prompts, args.model, count=8, longest=256)
    rows = []
    for dtype in args.dtypes:
        ours = [engine_system(f"sterna, drafts {draft}", args.model, dtype, draft) for draft in ("off", "anpd")]
        systems = [*ours, *transformers_systems(args.model, dtype)]
        measure(systems, prompts, args.tokens, args.rounds)
        rows += summary(systems, dtype)
    print(f"{'type':<9} {'batch':>5}  {'system':<28} {'tokens/s':>9}  against {PEER} (range over rounds)")
    for r in rows:
        ratio = f"{r['ratio']:.2f} ({r['ratio_low']:.2f} to {r['ratio_high']:.2f})"
        print(f"{r['dtype']:<9} {r['batch']:>5}  {r['system']:<28} {r['tokens_per_s']:>9.1f}  {ratio}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"threads": args.threads, "tokens": args.tokens, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
