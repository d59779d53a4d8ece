"""Every architecture trained at the same compute on the same tokens: what it makes of held-out text, how fast, and what serving it keeps.

Promise: each gets the same FLOPs by the arithmetic of train/plan/shapes.py, the same width, the same documents in the same order, the
same rate schedule and seed; its step is the training loop's own. Afterwards its weights are exported, loaded again by transformers,
judged, and made to generate. Price: about a minute of one core for the dense one; the recurrent ones, whose kernels are plain torch
here, three to four times that. Tokens per second are those of documents: where an architecture cannot keep packed documents apart, the
padding that it needs instead is its own loss. Results stand in the output file one by one; a second call goes on from there.

    python -m benchmarks.architectures --output runs/architectures.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from pipelines.vocabulary import Vocabulary, train_tokenizer
from train.architectures import make_config, make_model
from train.corpus import Sequences, pack
from train.loop import held_out_loss, run
from train.plain import PlainStepper
from train.plan.shapes import Architecture, ModelShape, shape_of_width
from train.recipe import Recipe
from train.state import State

LENGTH, VOCABULARY, WIDTH = 256, 1024, 128
BATCH, RATE, SEED = 8, 3e-3, 0
HELD_OUT_EVERY = 12
"""One document in so many is kept out of training."""
CONTEXT = 32_768
"""Tokens at which the bytes that serving keeps are told."""


def documents(folder: Path) -> list[str]:
    """Web pages of C4, articles of WikiText, scenes of Shakespeare."""
    pages = [json.loads(line)["text"] for line in (folder / "docs/c4-sample.jsonl").read_text().splitlines()]
    articles = (folder / "text/wikitext2-valid.txt").read_text().split("\n = ")
    scenes = (folder / "text/shakespeare.txt").read_text().split("\n\n")
    joined = ["\n\n".join(scenes[at : at + 12]) for at in range(0, len(scenes), 12)]
    return [text.strip() for text in pages + articles + joined if len(text.strip()) > 100]


def corpus(folder: Path) -> tuple[Sequences, Sequences, int]:
    """(packed training sequences, held-out ones, bytes of the held-out text)."""
    found = documents(folder)
    kept, held = ([text for at, text in enumerate(found) if (at % HELD_OUT_EVERY == 0) == out] for out in (False, True))
    vocabulary = Vocabulary(train_tokenizer(kept, VOCABULARY), VOCABULARY, end=0, pad=1)
    return packed(vocabulary, kept), packed(vocabulary, held), sum(len(text.encode()) for text in held)


def packed(vocabulary: Vocabulary, texts: list[str]) -> Sequences:
    """Documents, longer ones in pieces, each behind an end token, so that every token of the text is predicted."""
    pieces = [[vocabulary.end, *ids[at : at + LENGTH - 1]] for ids in vocabulary.encode(texts) for at in range(0, len(ids), LENGTH - 1)]
    return pack(pieces, [[True] * len(piece) for piece in pieces], LENGTH, vocabulary.pad)


def trial(architecture: Architecture, flops: float, data: tuple[Sequences, Sequences, int]) -> dict[str, Any]:
    """Train one, export it, load it, judge it, let it generate."""
    source, held_out, held_out_bytes = data
    shape = shape_of_width(WIDTH, vocab_size=VOCABULARY, max_length=LENGTH, architecture=architecture)
    steps = round(flops / (shape.train_flops_per_token(LENGTH) * LENGTH * BATCH))
    recipe = Recipe(
        steps=steps, global_batch=BATCH, micro_batch=BATCH, sequence_length=LENGTH, learning_rate=RATE, warmup_steps=steps // 10,
        num_workers=1, checkpoint_every=steps, seed=SEED, precision="float32", guard=0.0,
    )  # fmt: skip
    model = make_model(make_config(shape), seed=SEED)
    state = run(PlainStepper(model, recipe), source, recipe, state=State())
    with tempfile.TemporaryDirectory(prefix="architecture-") as folder:
        model.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    nats = held_out_loss(PlainStepper(loaded, recipe), held_out, BATCH) * held_out.num_labels(np.arange(len(held_out)))
    prompt = torch.zeros(1, 1, dtype=torch.long)
    text = loaded.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=32, do_sample=False, eos_token_id=-1)
    return figures(shape, type(loaded).__name__, state) | {
        "bits_per_byte": nats / math.log(2) / held_out_bytes,
        "generated": int(text.shape[1]) - 1,
        "epochs": steps * BATCH / len(source),
    }


def figures(shape: ModelShape, name: str, state: State) -> dict[str, Any]:
    """What is known of a shape and of a run."""
    return {
        "class": name,
        "parameters": shape.num_parameters,
        "active": shape.num_active_parameters,
        "flops_per_token": shape.train_flops_per_token(LENGTH),
        "steps": state.step,
        "loss": state.final_loss(),
        "tokens": sum(record.tokens for record in state.records),
        "tokens_per_s": state.tokens_per_second(),
        "kv_bytes_per_token": shape.kv_bytes_per_token(),
        "state_bytes": shape.state_bytes(),
        "bytes_at_length": shape.cache_bytes(LENGTH),
        "bytes_at_context": shape.cache_bytes(CONTEXT),
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """The figures as text, the best bits per byte first."""
    lines = [
        "| architecture | class | parameters (active) | MFLOPs/token | steps | bits per byte | tokens/s | keys and values per token | "
        f"state | kept at {CONTEXT // 1024}k tokens |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(found.items(), key=lambda item: item[1]["bits_per_byte"]):
        size = f"{row['parameters'] / 1e6:.2f}M" + (f" ({row['active'] / 1e6:.2f}M)" if row["active"] != row["parameters"] else "")
        lines.append(
            f"| {name} | {row['class']} | {size} | {row['flops_per_token'] / 1e6:.2f} | {row['steps']} | {row['bits_per_byte']:.3f} | "
            f"{row['tokens_per_s']:,.0f} | {row['kv_bytes_per_token']:,} B | {row['state_bytes']:,} B | "
            f"{row['bytes_at_context'] / 2**20:.2f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/architectures.json"))
    parser.add_argument("--flops", type=float, default=4e12, help="training FLOPs of each")
    parser.add_argument("--only", nargs="*", choices=get_args(Architecture), default=list(get_args(Architecture)))
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("STERNA_DATA", "../shared/data")), help="folder with docs/ and text/"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = json.loads(args.output.read_text()) if args.output.exists() else {}
    data = corpus(args.data)
    print(f"{len(data[0])} sequences to train on, {data[2]:,} bytes held out, {args.flops:.1e} FLOPs each")
    for name in args.only:
        if name not in found:
            found[name] = trial(name, args.flops, data)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(found, indent=1))
            print(f"{name}: {found[name]['bits_per_byte']:.3f} bits per byte, {found[name]['tokens_per_s']:,.0f} tokens/s", flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
