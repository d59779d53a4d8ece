"""How far int8 KV moves a model from bf16 KV: greedy tokens that differ, and the divergence of the next-token distributions.

    python -m benchmarks.kv_divergence --model FOLDER --prompts FILE [--json FILE]

Each prompt is completed greedily with bf16 KV; then the same text is scored teacher-forced with both kinds, so that one early difference
does not count for all tokens after it. FILE: jsonl with a `prompt` in each row.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import torch

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Sampling


def divergence(model: Path, prompts: list[str], max_tokens: int) -> dict[str, float]:
    """Over the completions' tokens: the share whose likeliest token differs, and KL(bf16 KV || int8 KV) in nats."""
    engines = [Engine.load(model, EngineConfig(kv_dtype=kind, draft="off")) for kind in ("auto", "int8")]
    answers = engines[0].generate(prompts, Sampling(temperature=0, max_tokens=max_tokens))
    differ = total = 0
    kl: list[torch.Tensor] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        head = engines[0].tokenizer.encode(prompt)
        text = [*head, *answer.tokens]
        wide, narrow = (engine.logits(text[:-1])[len(head) - 1 :].double().log_softmax(-1) for engine in engines)
        differ += int((wide.argmax(-1) != narrow.argmax(-1)).sum())
        total += len(wide)
        kl.append((wide.exp() * (wide - narrow)).sum(-1))
    all_kl = torch.cat(kl)
    sizes = [engine.runner.cache.bytes_per_block for engine in engines]
    return {
        "tokens": total,
        "share_of_greedy_tokens_that_differ": differ / total,
        "mean_kl_nats": float(all_kl.mean()),
        "p99_kl_nats": float(all_kl.quantile(0.99)),
        "bytes_ratio": sizes[1] / sizes[0],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="jsonl (or .gz) with a `prompt` in each row")
    parser.add_argument("--limit", type=int, default=100, help="prompts to use")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with gzip.open(options.prompts, "rt") if options.prompts.suffix == ".gz" else options.prompts.open() as lines:
        prompts = [json.loads(line)["prompt"] for line in lines][: options.limit]
    figures = divergence(options.model, prompts, options.max_tokens)
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
