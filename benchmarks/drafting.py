"""Drafts on against drafts off, end to end: tokens per second of our own engine on three tasks.

Two workers hold the same model, one drafts and one does not; each group of prompts (1, 4 or 16 at once) is given to both, in turns, so a
busy machine is busy for both. The gain is the ratio of their tokens per second over all groups, prompts included, with a 95 % confidence
interval from a paired bootstrap. Two processes that do the same differ by some percent for as long as they live (where their memory
happens to lie), so each line of the table starts several pairs of workers, and the bootstrap draws pairs, then their groups. New
workers also mean that no drafter has seen an answer before.
Drafts never change the tokens (up to rounding): `same` says what share of answers was equal to the last token.
Tasks: see tasks.py. Figures are kept in --output after every line: run again and it goes on; --fresh begins anew.

    python -m benchmarks.drafting --quick              # some minutes
    python -m benchmarks.drafting                      # everything
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.intervals import ratio_of_rates
from benchmarks.summariser import summariser
from benchmarks.systems import Worker, catalogue
from benchmarks.tasks import TASKS, Problem, problems, repeated
from cluster.console import say

WANTED = {("edit", 1): 1.5, ("summarise", 1): 1.5}
NUM_PAIRS = 4
"""Pairs of workers for each line; the groups are shared out among them."""
WARM_UP = 4
"""Groups given to both workers first, from other problems: they settle clocks and let the drafter learn what a step costs."""
Line = dict[str, Any]


def measure(task: str, temperature: float, batch: int, args: argparse.Namespace, model: Path) -> Line:
    """One line: both workers of each pair on the same groups of prompts."""
    groups = args.groups[batch]
    found = problems(task, model, args.data, batch * groups + max(batch, WARM_UP))
    groups = min(groups, (len(found) - max(batch, WARM_UP)) // batch)
    measured, others = found[: batch * groups], found[batch * groups :]
    rows: list[Line] = []
    for pair in range(NUM_PAIRS):
        off, on = (_worker(model, args.threads, batch, drafts) for drafts in ("off", args.draft))
        try:
            for i, worker in itertools.product(range(WARM_UP), (off, on)):
                worker.ask(_asked((others * batch)[i : i + batch], temperature, 10_000 + i * batch))
            for i in range(pair, groups, NUM_PAIRS):
                group = measured[i * batch : (i + 1) * batch]
                asked = _asked(group, temperature, i * batch)
                in_turn = (off, on) if i // NUM_PAIRS % 2 else (on, off)
                replies = {worker is on: worker.ask(asked) for worker in in_turn}
                rows.append({"pair": pair, **_row(group, replies[False], replies[True])})
        finally:
            off.close()
            on.close()
    return {"task": task, "temperature": temperature, "batch": batch, "rows": rows}


def _worker(model: Path, threads: int, batch: int, draft: str | None) -> Worker:
    """Our engine for `batch` sequences; `draft` None is the engine's own choice."""
    spec = next(s for s in catalogue(threads, batch, Path()) if s.name == "sterna")
    options = {k: v for k, v in spec.options.items() if k != "draft"} | {"max_length": 1024} | ({"draft": draft} if draft else {})
    return Worker(replace(spec, name=f"sterna, drafts {draft or 'on'}", options=options), model)


def _asked(group: list[Problem], temperature: float, seed: int) -> list[dict[str, Any]]:
    """Requests that arrive together; sampling is keyed by the seed, so both workers draw alike."""
    return [
        {"prompt": p.prompt, "tokens": p.num_output, "temperature": temperature, "seed": seed + i, "end": p.end}
        for i, p in enumerate(group)
    ]


def _row(group: list[Problem], off: dict[str, Any], on: dict[str, Any]) -> Line:
    tokens_off, tokens_on = ([a["tokens"] for a in reply["answers"]] for reply in (off, on))
    return {
        "seconds_off": off["seconds"],
        "seconds_on": on["seconds"],
        "tokens_off": sum(map(len, tokens_off)),
        "tokens_on": sum(map(len, tokens_on)),
        "steps_on": max(len(a["times"]) for a in on["answers"]),
        "steps_off": max(len(a["times"]) for a in off["answers"]),
        "same": sum(a == b for a, b in zip(tokens_off, tokens_on, strict=True)),
        "answers": len(group),
        "repeated": sum(repeated(p.prompt, t, run=4) for p, t in zip(group, tokens_on, strict=True)) / len(group),
    }


def table(lines: list[Line]) -> str:
    """The figures as text, with each target's verdict."""
    head = f"{'task':<10} {'temp':>4} {'batch':>5} {'tokens/s off':>12} {'on':>8}  {'on ÷ off (95 %)':<22} {'tokens/step':>11}"
    shown = [f"{head} {'copied':>7} {'same':>7}"]
    for line in lines:
        rows = line["rows"]
        total = {key: sum(r[key] for r in rows) for key in rows[0]}
        off, on = ([(r[f"tokens_{side}"], r[f"seconds_{side}"]) for r in rows] for side in ("off", "on"))
        gain = ratio_of_rates(on, off, [r["pair"] for r in rows])
        wanted = WANTED.get((line["task"], line["batch"]), 0.0)
        verdict = "MISSED" if gain.value < wanted or gain.high < 1.0 else "met" if wanted else ""
        shown.append(
            f"{line['task']:<10} {line['temperature']:>4} {line['batch']:>5} {total['tokens_off'] / total['seconds_off']:>12,.0f} "
            f"{total['tokens_on'] / total['seconds_on']:>8,.0f}  {gain!s:<22} {total['steps_off'] / total['steps_on']:>11.2f} "
            f"{total['repeated'] / len(rows):>7.0%} {total['same']:>3}/{total['answers']:<3} {verdict}"
        )
    return "\n".join([*shown, "wanted: 1.5 at batch 1 on edits and summaries; no interval below 1.0"])


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    shared = Path("../shared")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tasks", nargs="+", default=list(TASKS), choices=TASKS, help="default: all three")
    add("--temperatures", nargs="+", type=float, default=[0.0, 0.8], help="default: 0 0.8")
    add("--batches", nargs="+", type=int, default=[1, 4, 16], help="prompts at once (default: 1 4 16)")
    add("--draft", help="EngineConfig.draft of the side that drafts (default: the engine's own)")
    add("--threads", type=int, default=2, help="CPU threads (default: 2)")
    add("--data", type=Path, default=Path(os.environ.get("STERNA_DATA", shared / "data")))
    add("--model-dir", type=Path, default=Path(os.environ.get("STERNA_MODELS", shared / "models")), help="holds tiny-code")
    add("--made", type=Path, default=Path("runs/models"), help="the summariser is made here if it is not there")
    add("--output", type=Path, default=Path("runs/drafting.json"))
    add("--fresh", action="store_true", help="forget earlier figures")
    add("--quick", action="store_true", help="batches 1 and 4, few prompts, into runs/drafting-quick.json")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write JSON."""
    args = arguments().parse_args(argv)
    args.groups = {1: 48, 4: 24, 16: 12}
    if args.quick:
        args.batches, args.groups, args.output = [1, 4], {1: 12, 4: 8}, Path("runs/drafting-quick.json")
    base = args.model_dir / "tiny-code"
    try:
        models = {task: summariser(base, args.data, args.made) if task == "summarise" else base for task in args.tasks}
    except ValueError as error:
        print(f"benchmarks.drafting: {error}", file=sys.stderr)
        return 2
    lines: list[Line] = [] if args.fresh or not args.output.exists() else json.loads(args.output.read_text())
    done = {(line["task"], line["temperature"], line["batch"]) for line in lines}
    for key in itertools.product(args.tasks, args.temperatures, args.batches):
        if key not in done:
            lines.append(measure(*key, args, models[key[0]]))
            say(table(lines[-1:]))
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(lines, indent=1))
    print(table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
