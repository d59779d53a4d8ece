"""Joint sparsity in rounds with recovery between them: which matrices are thinned by how much, FDT-guided against uniform.

    python -m benchmarks.compression_rounds --model models/tiny-code --prompts data/code/mbpp.jsonl --json rounds.json

Each round prunes further (of the weights as they are by then), to a target over all linear layers together, and then recovers: every
weight that is left learns the original's distribution on its own completions again. Two ways of sharing a round's target out:

* uniform: every matrix gets the target;
* fdt: each matrix is tried alone at several sparsities on search prompts; its harm is the hazard of a first token that the model as it
  is by then would not have chosen (first divergences per token that was at risk). Hazards of independent causes add up, so a knapsack
  chooses the sparsities with the least hazard in all. The paper (arXiv 2311.01544) raises, step by step, the component whose FDT is
  longest; the choice is by the same figure.
* kl: the same with the mean KL from the original in the place of the hazard;
* scores: the same with the KL that scores.py predicts of all of them from one pass of gradients, which costs no pass of any.

After each round, before and after recovery: perplexity on held-out text and FDT, flips and KL on held-out prompts. A run that was
interrupted goes on after the last round of the same settings that stands in the JSON's folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.compression_bench import Plain
from cluster.storage import digest_of
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.text import Tokenizer
from train.compress.calibrate import matrices, moments, weight_of
from train.compress.candidates import Variant, degraded
from train.compress.certify import observed_fdt
from train.compress.distil_loss import DistilLoss
from train.compress.divergence import Reference, make_reference, survival_quantile, text_losses
from train.compress.lessons import Lessons
from train.compress.movable import movable, settled
from train.compress.noise import flips_by_prompt, hazard
from train.compress.options import option
from train.compress.original import greedy
from train.compress.probe import Probe
from train.compress.quantize import load_dense
from train.compress.recover import recipe_of
from train.compress.scores import scores
from train.compress.search import Candidate, at_bytes
from train.compress.store import Store
from train.loop import run
from train.plain import PlainStepper
from train.state import State

Choice = tuple[str, str]
"""(matrix, option)."""


@dataclass(frozen=True, slots=True)
class Texts:
    """All that a run looks at."""

    lessons: Reference
    search: Reference
    held_out: Reference
    passages: list[list[int]]
    calibration: list[list[int]]


def read_prompts(path: Path, tokenizer: Tokenizer, length: int) -> list[list[int]]:
    """Whole passages of a jsonl file: `prompt`, or mbpp's `text` and `code`."""
    found = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        text = row["prompt"] if "prompt" in row else f'"""{row["text"]}"""\n{row["code"]}'.replace("\r", "")
        found.append(tokenizer.encode(text)[: 3 * length])
    return [tokens for tokens in found if len(tokens) > length]


def gather(model: Path, prompts: Path, sizes: dict[str, int], length: int, num_tokens: int, seed: int, store: Store) -> Texts:
    """The original's completions for each part of the prompts; no prompt is in two parts."""
    engine = Engine.load(model, EngineConfig(dtype="float32"))
    passages = read_prompts(prompts, engine.tokenizer, length)
    order = np.random.default_rng(seed).permutation(len(passages))
    assert len(order) >= sum(sizes.values()), f"{prompts}: {len(order)} prompts longer than {length} tokens, {sum(sizes.values())} needed"
    parts, at = {}, 0
    for name, size in sizes.items():
        parts[name] = [passages[index] for index in order[at : at + size]]
        at += size
    made = {}
    for name in ("lessons", "search", "held_out"):
        heads = [passage[:length] for passage in parts[name]]
        made[name] = store.reference([name, heads, num_tokens], partial(_reference, engine, heads, num_tokens))
    return Texts(**made, passages=parts["held_out"], calibration=parts["lessons"][:32])


def _reference(engine: Engine, heads: list[list[int]], num_tokens: int) -> Reference:
    return make_reference(engine, heads, greedy(engine, heads, num_tokens))


def figures(model: Any, texts: Texts) -> dict[str, float]:
    """On the held-out part."""
    traces = Probe(model, texts.held_out).traces({})
    flips = flips_by_prompt(texts.held_out, traces)
    fdts = observed_fdt(flips)
    losses = np.concatenate([text_losses(Plain(model), passage) for passage in texts.passages])
    return {
        "perplexity": float(np.exp(losses.mean())),
        "fdt_median": float(survival_quantile(fdts, 0.5)),
        "fdt_mean": float(np.mean([fdt for fdt, _ in fdts])),
        "flips": float(np.concatenate(flips).mean()),
        "kl": float(np.concatenate([trace.kl for trace in traces]).mean()),
    }


def shared_out(
    model: Any, texts: Texts, guide: str, target: int, options: argparse.Namespace, store: Store, stem: str
) -> dict[str, Variant]:
    """Every linear layer at its sparsity of this round, `target` per cent of them together."""
    linear = [matrix for matrix in matrices(model) if matrix.role == "linear"]
    known = moments(model, texts.calibration, [matrix.name for matrix in linear])
    method, spread = options.method, [int(step) for step in options.spread.split(",")]
    if guide == "uniform":
        chosen = {matrix.name: f"sparse{target}-{method}" for matrix in linear}
        return {name: degraded(weight_of(model, name), option(each), known[name]) for name, each in chosen.items()}
    variants = {
        (matrix.name, each.name): degraded(weight_of(model, matrix.name), each, known[matrix.name])
        for matrix in linear
        for each in [option(f"sparse{min(max(target + step, 1), 97)}-{method}") for step in spread]
    }
    harms = rising(_harms(Probe(model, texts.search), variants, guide, store, stem), variants)
    candidates = [
        Candidate(matrix=name, option=each, bytes=round(variant.option.density * variant.dense.numel() * 100), harm=harms[name, each])
        for (name, each), variant in variants.items()
    ]
    limit = sum(matrix.rows * matrix.columns for matrix in linear) * (100 - target)
    plan = at_bytes(candidates, limit)
    assert plan is not None
    return {name: variants[name, each] for name, each in plan.items()}


def _harms(probe: Probe, variants: Mapping[Choice, Variant], guide: str, store: Store, stem: str) -> dict[Choice, float]:
    """What each variant would do, alone; measured ones are kept as they come."""
    if guide == "scores":
        dense: dict[str, dict[str, torch.Tensor]] = {}
        for (name, each), variant in variants.items():
            dense.setdefault(name, {})[each] = variant.dense
        return {key: score.kl for key, score in scores(probe, dense).items()}
    known, now = store.read("harms", stem), probe.traces({})
    for name, each in variants:
        key = f"{name} {each}"
        if key not in known:
            traces = probe.traces({name: variants[name, each].dense})
            mean = float(np.concatenate([trace.kl for trace in traces]).mean())
            parted = [trace.likeliest != was.likeliest for trace, was in zip(traces, now, strict=True)]
            known[key] = mean if guide == "kl" else hazard(parted)
            store.write("harms", stem, known)
    return {(name, each): known[f"{name} {each}"] for name, each in variants}


def rising(harms: Mapping[Choice, float], variants: Mapping[Choice, Variant]) -> dict[Choice, float]:
    """The harms, none of a sparser variant of a matrix as low as a denser one's: where it was measured lower, that was chance."""
    found: dict[Choice, float] = {}
    least: dict[str, float] = {}
    for key in sorted(harms, key=lambda key: -variants[key].option.density):
        found[key] = least[key[0]] = max(harms[key], least.get(key[0], 0.0) + 1e-9)
    return found


def recovered(
    model: Any, variants: dict[str, Variant], lessons: Lessons, steps: int, rate: float, seed: int
) -> tuple[dict[str, Variant], dict[str, torch.Tensor]]:
    """(the matrices, all else) of `model` after training what `variants` leave of it."""
    recipe = replace(
        recipe_of("full", steps, len(lessons), learning_rate=rate, seed=seed),
        sequence_length=lessons.sequence_length, precision="float32", zero_stage=0, guard=0.0, checkpoint_every=steps,
    )  # fmt: skip
    moving = movable(model, variants, "full")
    run(PlainStepper(DistilLoss(moving), recipe), lessons, recipe, state=State())
    return settled(moving, variants)


def with_values(model: Path, variants: dict[str, Variant], plain: dict[str, torch.Tensor]) -> Any:
    """A fresh model in float32 with these matrices and parameters."""
    made: Any = load_dense(model, torch.float32)
    with torch.no_grad():
        for name, weight in plain.items():
            made.get_parameter(name).copy_(weight)
        for name, variant in variants.items():
            weight_of(made, name).copy_(variant.dense)
    return made.eval()


Round = tuple[dict[str, Any], dict[str, Variant], dict[str, torch.Tensor]]
"""(what is told of it, its matrices, all else that moved)."""


def rounds(
    model: Path, texts: Texts, guide: str, targets: Sequence[int], options: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    """One row per round."""
    lessons, plain, table = Lessons.of(texts.lessons), dict[str, torch.Tensor](), []
    current: Any = load_dense(model, torch.float32).eval()
    for number, target in enumerate(targets):
        stem = f"{guide}-{'-'.join(map(str, targets[: number + 1]))}"

        def thinned(target: int = target, stem: str = stem, current: Any = current, plain: dict[str, torch.Tensor] = plain) -> Round:
            began = time.perf_counter()
            variants = shared_out(current, texts, guide, target, options, Store(folder), stem)
            seconds = time.perf_counter() - began
            zeros = {name: float((v.dense == 0).float().mean()) for name, v in variants.items()}
            before = figures(with_values(model, variants, plain), texts)
            return {"guide": guide, "target": target, "before": before, "zeros": zeros, "search_s": seconds}, variants, plain

        row, variants, _ = _once(folder / f"{stem}-thinned.pt", thinned)

        def taught(row: Any = row, variants: Any = variants, current: Any = current) -> Round:
            began = time.perf_counter()
            found, plain = recovered(current, variants, lessons, options.steps, options.learning_rate, options.seed)
            seconds = time.perf_counter() - began
            sparsity = sum(int((v.dense == 0).sum()) for v in found.values()) / sum(v.dense.numel() for v in found.values())
            after = figures(with_values(model, found, plain), texts)
            return {**row, "after": after, "sparsity": sparsity, "recover_s": seconds}, found, plain

        row, variants, plain = _once(folder / f"{stem}.pt", taught)
        current = with_values(model, variants, plain)
        table.append(row)
        print(_line(row), flush=True)
    return table


def _once(kept: Path, make: Callable[[], Round]) -> Round:
    """What `make` gave, now or in an earlier run."""
    if not kept.exists():
        row, variants, plain = make()
        torch.save((row, {name: (v.option.name, dict(v.tensors)) for name, v in variants.items()}, plain), kept.with_suffix(".new"))
        kept.with_suffix(".new").replace(kept)
    row, stored, plain = torch.load(kept)
    return row, {name: Variant(option(each), tensors) for name, (each, tensors) in stored.items()}, plain


def _line(row: dict[str, Any]) -> str:
    def said(part: str) -> str:
        of = row[part]
        return (
            f"perplexity {of['perplexity']:7.2f}  FDT median {of['fdt_median']:3.0f} mean {of['fdt_mean']:5.1f}  "
            f"flips {of['flips']:6.2%}  KL {of['kl']:.4f}"
        )

    spread = sorted(row["zeros"].values())
    shares = f"{spread[0]:.0%} to {spread[-1]:.0%}"
    return (
        f"{row['guide']:8} {row['sparsity']:5.1%} ({shares})\n   pruned     {said('before')}\n   recovered  {said('after')}"
        f"   [{row['search_s']:.0f} s to choose, {row['recover_s']:.0f} s to recover]"
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="jsonl with `prompt`, or with `text` and `code`")
    parser.add_argument("--targets", default="30,50,65,75", help="per cent of the linear layers' weights that are zero after each round")
    parser.add_argument("--guides", default="uniform,fdt", help="some of uniform, fdt, kl, scores")
    parser.add_argument(
        "--spread", default="-30,-15,0,10,18", help="sparsities that a matrix is tried at, in points from the round's target"
    )
    parser.add_argument("--method", default="wanda", choices=("magnitude", "wanda", "sparsegpt"))
    parser.add_argument("--steps", type=int, default=40, help="of recovery per round")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--lessons", type=int, default=256, help="prompts to recover on")
    parser.add_argument("--search-prompts", type=int, default=24)
    parser.add_argument("--held-out", type=int, default=48)
    parser.add_argument("--length", type=int, default=24, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a completion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("runs/compression_rounds.json"))
    options = parser.parse_args()
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("json", "guides", "targets")}
    folder = options.json.with_suffix("") / digest_of(settings)[:12]
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"held_out": options.held_out, "search": options.search_prompts, "lessons": options.lessons}
    texts = gather(options.model, options.prompts, sizes, options.length, options.tokens, options.seed, Store(folder))
    targets = [int(each) for each in options.targets.split(",")]
    base: Any = load_dense(options.model, torch.float32)
    found = {"original": figures(base.eval(), texts)}
    print(f"original: perplexity {found['original']['perplexity']:.2f}", flush=True)
    found["rounds"] = [row for guide in options.guides.split(",") for row in rounds(options.model, texts, guide, targets, options, folder)]
    options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
