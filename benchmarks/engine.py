"""The engine beside vLLM, transformers and llama.cpp: same models, precision, threads, prompts; interleaved.

Every system is a process of its own that holds its model and works only while it is asked. A round asks all of them, for each batch size,
for 128 tokens after prompts of 256 (greedy, no end token, drafts and prefix caches off), in turns, and keeps the best of each one's
turns; ratios are taken within a round, so a busy machine spoils the speeds and hardly the ratios. Then requests arrive as in the Azure
trace, at 70 % of the rate that our engine can bear.
Figures are kept in --output, one JSON file a model, after every round: run again and it goes on where it stopped; --fresh begins anew.

    make peers                                        # once: the peers' own environment
    python -m benchmarks.engine --quick               # some minutes: tiny-code only, short outputs
    python -m benchmarks.engine                       # everything
    python -m benchmarks.engine --models llama-1b --systems sterna "sterna int8" vllm --fresh
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import load, report, rounds
from benchmarks.models import MODELS, Facts, facts, model_folder
from benchmarks.systems import NotThere, Spec, Worker, catalogue
from cluster.console import say

LOAD_SHARE = 0.7
Result = dict[str, Any]


def measure(name: str, args: argparse.Namespace, file: Path) -> Result:
    """All figures of one model, going on from what `file` holds."""
    known = facts(model_folder(name, args.model_dir, args.made))
    size = 0 if known["step_bytes"] < 1e8 else 1 if known["step_bytes"] < 1e9 else 2
    num_rounds, repeats = args.rounds or (15, 7, 4)[size], args.repeats or (3, 2, 1)[size]
    plan = {"batches": args.batches, "prompt": args.prompt, "output": args.tokens, "threads": args.threads, "repeats": repeats}
    result = _stored(file, name, plan, args.fresh) or {"model": name, "plan": plan, "rounds": [], "systems": {}, "missing": {}} | known
    wanted_load = bool(args.load_requests and args.trace) and "load" not in result
    if len(result["rounds"]) >= num_rounds and not wanted_load:
        return result
    workers = [_worker(spec, name, args) for spec in _specs(name, args)]
    try:
        result["missing"] = rounds.warm_up(workers, _tokens(name, args, known, seed=-1), args.batches, args.prompt)
        workers = [w for w in workers if w.spec.name not in result["missing"]]
        while len(result["rounds"]) < num_rounds and workers:
            workers = _add_round(result, workers, _tokens(name, args, known, seed=len(result["rounds"])))
            _store(file, result)
        if wanted_load and workers:
            result["load"] = _load(workers, args, known["vocab_size"])
            _store(file, result)
    finally:
        for worker in workers:
            worker.close()
    return result


def _specs(name: str, args: argparse.Namespace) -> list[Spec]:
    """The systems asked for; quantised ones only where reading weights is what costs."""
    every = catalogue(args.threads, max(args.batches), args.output / "gguf")
    return [s for s in every if s.name in args.systems and (s.weights == "bf16" or "1b" in name)]


def _worker(spec: Spec, name: str, args: argparse.Namespace) -> Worker:
    return Worker(spec, model_folder(name, args.model_dir, args.made, spec.weights))


def _add_round(result: Result, workers: list[Worker], tokens: list[int]) -> list[Worker]:
    """One round more, or the reason why a system ended in it; the systems that are left."""
    try:
        result["rounds"].append(rounds.one_round(len(result["rounds"]), workers, tokens, result["plan"], result["step_bytes"]))
    except NotThere as reason:  # the round is measured again without it
        result["missing"] |= {w.spec.name: str(reason) for w in workers if not w.alive}
    left = [w for w in workers if w.alive]
    result["systems"] |= {w.spec.name: _system(w) for w in left}
    return left


def _tokens(name: str, args: argparse.Namespace, known: Facts, seed: int) -> list[int]:
    text = args.prompts if name == "tiny-code" else None
    model = model_folder(name, args.model_dir, args.made)
    return rounds.code_tokens(model, text, known["vocab_size"], args.prompt * max(args.batches), seed)


def _system(worker: Worker) -> dict[str, Any]:
    own = {"cold_start_s": worker.cold_start_s, "peak_rss": worker.peak_rss, "peak_pss": worker.peak_pss}
    return own | {"step_bytes": facts(worker.model)["step_bytes"]}


def _load(workers: list[Worker], args: argparse.Namespace, vocab_size: int) -> dict[str, Any]:
    """The load at LOAD_SHARE of the rate at which our engine finishes the same requests when all of them wait from the start."""
    trace = load.shorten(load.read_trace(args.trace, args.load_requests))
    ours = next((w for w in workers if w.spec.name == report.OURS), workers[0])
    together = [q | {"at": 0.0} for q in load.questions(trace, vocab_size)]
    seconds = statistics.median(load.latencies(ours.ask(together))["seconds"] for _ in range(3))
    rate = LOAD_SHARE * len(trace) / seconds
    say(f"load: all {len(trace)} requests at once take our engine {seconds:.1f} s; they will arrive at {rate:.2f}/s")
    asked = load.questions(load.at_rate(trace, rate), vocab_size)
    dense = [w for w in workers if w.spec.weights == "bf16"]
    return {"requests": len(trace), "rate": rate, "rounds": [rounds.one_load(dense, asked, i) for i in range(args.load_rounds)]}


def _stored(file: Path, name: str, plan: dict[str, Any], fresh: bool) -> Result | None:
    if fresh or not file.exists():
        return None
    result: Result = json.loads(file.read_text())
    if result["plan"] != plan:
        raise ValueError(
            f"{file}: holds figures of another plan ({result['plan']}); add --fresh to measure anew, or choose another --output"
        )
    say(f"{name}: {len(result['rounds'])} rounds are there already")
    return result


def _store(file: Path, result: Result) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(result, indent=1))
    scratch.rename(file)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    shared = Path("../shared")
    names = [spec.name for spec in catalogue(2, 16, Path())]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", default=list(MODELS), help=f"of {', '.join(MODELS)}, or model folders (default: all three)")
    add("--systems", nargs="+", default=names, choices=names, metavar="NAME", help=f"of {', '.join(names)} (default: all)")
    add("--batches", nargs="+", type=int, default=[1, 8, 16], help="requests at once (default: 1 8 16)")
    add("--rounds", type=int, help="rounds counted (default: 15, 7 from 100 MB of weights, 4 from 1 GB)")
    add("--repeats", type=int, help="turns of each system within a round, of which its best counts (default: 3, 2, 1 by the same sizes)")
    add("--prompt", type=int, default=256, help="tokens of each prompt (default: 256)")
    add("--tokens", type=int, default=128, help="tokens of each output (default: 128)")
    add("--threads", type=int, default=2, help="CPU threads of every system (default: 2)")
    add("--load-requests", type=int, default=48, help="requests of the arriving load; 0 leaves it out (default: 48)")
    add("--load-rounds", type=int, default=2, help="times each system bears the load (default: 2)")
    data = Path(os.environ.get("STERNA_DATA", shared / "data"))
    add("--prompts", type=Path, default=data / "code/HumanEval.jsonl.gz", help="text for tiny-code's prompts (jsonl with prompt)")
    add("--trace", type=Path, default=data / "traces/load/azure-conversation.csv", help="arrivals and lengths of the load")
    add("--model-dir", type=Path, default=Path(os.environ.get("STERNA_MODELS", shared / "models")), help="where trained models lie")
    add("--made", type=Path, default=Path("runs/models"), help="where random and quantised models are made (default: runs/models)")
    add("--output", type=Path, default=Path("runs/engine"), help="folder of the figures (default: runs/engine)")
    add("--fresh", action="store_true", help="forget earlier figures of these models")
    add("--quick", action="store_true", help="tiny-code, 2 rounds, 32 tokens, batches 1 and 8, into OUTPUT/quick")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print one table per model, write JSON and a plot."""
    args = arguments().parse_args(argv)
    if args.quick:
        args.models, args.rounds, args.tokens, args.batches = ["tiny-code"], 2, 32, [1, 8]
        args.load_requests, args.load_rounds, args.output = 12, 1, args.output / "quick"
    if not args.trace.exists():
        say(f"{args.trace}: not there, so no arriving load is measured; set STERNA_DATA")
        args.trace = None
    try:
        results = [measure(name, args, args.output / f"{Path(name).name}.json") for name in args.models]
    except ValueError as error:
        print(f"benchmarks.engine: {error}", file=sys.stderr)
        return 2
    results = [r for r in results if r["rounds"] and r["rounds"][0]["figures"]]
    for result in results:
        print(report.table(result), end="\n\n")
    if results:
        report.plot(results, args.output / "engine.png")
        say(f"figures: {args.output}/*.json, {args.output}/engine.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
