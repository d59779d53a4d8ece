"""What a plan of `sterna compress` is worth to whoever serves it: tokens per second, resident memory and energy beside bfloat16.

Promise: the plan is a real one, found within a budget on a trained model; a larger shape gets the same structure (each of its matrices
what the plan gave to the same component at the same relative depth) on random weights, since speed does not look at values. Both
models are asked in turns within every round, so ratios stand where speeds do not. Price: for llama-1b 3 minutes to write, 5 a round.

    sterna compress ../shared/models/tiny-code --budget flips=0.02 --prompts prompts.jsonl --output runs/small
    python -m benchmarks.compression_served runs/small
    python -m benchmarks.compression_served runs/small --shapes llama-1b --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.intervals import ratio_of_rounds
from benchmarks.models import facts, model_folder
from benchmarks.rounds import AWAKE, code_tokens, requests, warm_up
from benchmarks.systems import Worker, catalogue
from cluster.console import say
from train.compress.calibrate import matrices, weight_of
from train.compress.candidates import Variant, degraded
from train.compress.export import export
from train.compress.options import option

__all__ = ["depth", "energy_files", "like", "measured", "planned_folder", "table"]

PROMPT, OUTPUT = 256, 128
RAPL = Path("/sys/class/powercap")
"""Where Linux counts the energy of a processor's package, if the machine tells it."""


def depth(name: str) -> tuple[str, int | None]:
    """A matrix' component and layer.

    >>> depth("model.layers.3.mlp.up_proj"), depth("model.embed_tokens")
    (('model.layers.mlp.up_proj', 3), ('model.embed_tokens', None))
    """
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return (name, None) if at is None else (".".join(parts[:at] + parts[at + 1 :]), int(parts[at]))


def like(plan: Sequence[tuple[str, str]], names: Iterable[str]) -> dict[str, str]:
    """For every matrix of another model the option of `plan` (matrix, option) for this component at the nearest relative depth.

    >>> like([("layers.0.q", "int8"), ("layers.1.q", "int4"), ("head", "int8")], ["layers.0.q", "layers.1.q", "layers.2.q", "head"])
    {'layers.0.q': 'int8', 'layers.1.q': 'int8', 'layers.2.q': 'int4', 'head': 'int8'}
    """
    wanted = list(names)
    known = {depth(name): chosen for name, chosen in plan}
    least = 1 + max((layer for _, layer in known if layer is not None), default=0)
    most = 1 + max((layer for _, layer in map(depth, wanted) if layer is not None), default=0)
    found = {}
    for name in wanted:
        component, layer = depth(name)
        at = None if layer is None else (2 * layer + 1) * least // (2 * most)
        if (component, at) not in known:
            raise ValueError(f"{name}: the plan has no {component} at that depth; take a plan of a model of the same architecture")
        found[name] = known[component, at]
    return found


def energy_files(root: Path = RAPL) -> list[Path]:
    """The counters of whole packages that can be read, in microjoules."""
    return [file for file in sorted(root.glob("intel-rapl:?/energy_uj")) if os.access(file, os.R_OK)]


def planned_folder(plain: Path, plan: Path, target: Path) -> Path:
    """`plain` compressed as `plan` (a folder of `sterna compress`) says, rounded to nearest; made at `target` unless it is there."""
    if (target / "config.json").exists():
        return target
    say(f"{target}: writing {plain.name} with the plan of {plan}")
    chosen = [(row["name"], row["option"]) for row in json.loads((plan / "compression.json").read_text())["plan"]]
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16)
    options = like(chosen, [matrix.name for matrix in matrices(model)])
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    with torch.no_grad():
        export(model, {name: _rounded(weight_of(model, name), chosen) for name, chosen in options.items()}, plain, scratch)
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    return target


def _rounded(weight: torch.Tensor, name: str) -> Variant:
    """Rounded to nearest whatever the method was, which changes the values and not what it costs to multiply by them."""
    chosen = option(name)
    return degraded(weight, replace(chosen, method="rtn") if chosen.kind == "int" else chosen, None)


def measured(folders: dict[str, Path], rounds: int, batches: Sequence[int], threads: int) -> dict[str, Any]:
    """Per folder `bytes` on disk, `resident` bytes, `whole` and `decode` tokens per second by batch, one a round, and `joules` a token."""
    ours = next(spec for spec in catalogue(threads, max(batches), Path()) if spec.name == "sterna")
    workers = [Worker(replace(ours, name=name), folder) for name, folder in folders.items()]
    found: dict[str, Any] = {name: {"whole": {}, "decode": {}, "joules": {}} for name in folders}
    plain = next(iter(folders.values()))
    tokens = code_tokens(plain, None, facts(plain)["vocab_size"], PROMPT * max(batches), seed=0)
    try:
        for reason in warm_up(workers, tokens, list(batches), PROMPT).values():
            raise ValueError(reason)
        for index in range(rounds):
            for batch in batches:
                for worker in workers if index % 2 else workers[::-1]:
                    worker.ask(requests(tokens, 1, AWAKE, 2))
                    for figure, value in _asked(worker, requests(tokens, batch, PROMPT, OUTPUT)).items():
                        found[worker.spec.name][figure].setdefault(batch, []).append(value)
            say(f"round {index + 1}: " + ", ".join(f"{n} {r['decode'][batches[0]][-1]:.1f} tokens/s" for n, r in found.items()))
        for worker in workers:
            found[worker.spec.name] |= {"resident": worker.resident(), "bytes": _stored(worker.model)}
    finally:
        for worker in workers:
            worker.close()
    return found


def _asked(worker: Worker, asked: list[dict[str, Any]]) -> dict[str, float]:
    counters = energy_files()
    before = sum(int(file.read_text()) for file in counters)
    reply = worker.ask(asked)
    joules = (sum(int(file.read_text()) for file in counters) - before) / 1e6
    count = sum(len(answer["tokens"]) for answer in reply["answers"])
    start = max(answer["times"][0] for answer in reply["answers"])
    after = sum(time > start for answer in reply["answers"] for time in answer["times"])
    figures = {"whole": count / reply["seconds"], "decode": after / (reply["seconds"] - start)}
    return figures | ({"joules": joules / count} if counters else {})


def _stored(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def table(name: str, found: dict[str, Any]) -> str:
    """One model's rows, as Markdown."""
    plain, plan = found["bf16"], found["plan"]
    lines = [f"| {name} | bf16 | plan | ratio |", "|---|---|---|---|"]
    lines += [_row(what, plain[key] / 1e6, plan[key] / 1e6) for what, key in (("MB on disk", "bytes"), ("MB resident", "resident"))]
    for key, what in (("decode", "tokens/s between tokens"), ("whole", "tokens/s, prompts included"), ("joules", "joules a token")):
        for batch, ours in plan[key].items():
            ratio = ratio_of_rounds(ours, plain[key][batch])
            lines.append(_row(f"{what}, batch {batch}", statistics.median(plain[key][batch]), statistics.median(ours), str(ratio)))
    return "\n".join(lines + ([] if plan["joules"] else ["", "This machine does not tell its energy."]))


def _row(what: str, plain: float, plan: float, ratio: str = "") -> str:
    return f"| {what} | {plain:,.1f} | {plan:,.1f} | {ratio or f'{plan / plain:.2f}'} |"


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("plan", type=Path, help="a folder that sterna compress wrote")
    add("--shapes", nargs="+", default=["tiny-code", "llama-1b"], help="models that get the plan's structure (default: both)")
    add("--rounds", type=int, default=5, help="rounds counted (default: 5)")
    add("--batches", nargs="+", type=int, default=[1, 8], help="requests at once (default: 1 8)")
    add("--threads", type=int, default=2, help="CPU threads (default: 2)")
    add("--model-dir", type=Path, default=Path(os.environ.get("STERNA_MODELS", "../shared/models")), help="where trained models lie")
    add("--made", type=Path, default=Path("runs/models"), help="where models are made (default: runs/models)")
    add("--output", type=Path, default=Path("runs/compression_served.json"), help="file of the figures")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure every shape, print its table, keep the figures."""
    args = arguments().parse_args(argv)
    kept = {}
    try:
        if not (args.plan / "compression.json").is_file():
            raise ValueError(f"plan: {args.plan} has no compression.json; give a folder that `sterna compress --budget …` wrote")
        for name in args.shapes:
            plain = model_folder(name, args.model_dir, args.made)
            folders = {"bf16": plain, "plan": planned_folder(plain, args.plan, args.made / f"{plain.name}-{args.plan.name}")}
            kept[name] = measured(folders, args.rounds, args.batches, args.threads)
            print(table(name, kept[name]), end="\n\n", flush=True)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(kept, indent=1))
    except ValueError as error:
        print(f"benchmarks.compression_served: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
