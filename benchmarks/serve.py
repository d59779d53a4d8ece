"""The served model beside the bare engine: throughput, CPU per token, added time to first token, many slow streams, overload.

Both hold the same model with the same settings and threads on the same cores, and each works only while it is asked, so a round asks both,
in turns; ratios and differences are taken within a round. The client is a process of its own that reads bare HTTP. CPU is what the kernel
counted for each kind of process (the replica's includes the engine's own). Overload: requests come at three times the rate that the
engine bears, and `max_ttft_s` says how long those who are let in may wait. Many streams: as many sequences at once in one engine.
Figures are kept in --output after every part: run again and it goes on where it stopped; --fresh begins anew.

    python -m benchmarks.serve                            # everything, some 10 minutes
    python -m benchmarks.serve --parts throughput --rounds 3 --fresh
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from benchmarks.load import latencies
from benchmarks.models import model_folder
from benchmarks.serving import NUM_STREAMS, OVERLOAD, Figures, cpu_per_token, first_tokens, overload_figures, stream_figures, table
from benchmarks.systems import Spec, Worker
from cluster.console import say
from serve.app import free_port, running
from serve.config import ServeConfig
from serve.engine.config import EngineConfig

BATCH, VOCABULARY = 8, 49_000
PARTS = ("throughput", "ttft", "overload", "streams")
KINDS = {
    "ProxyActor": "proxy",
    "ServeReplica:sterna:gateway": "gateway",
    "ServeReplica:sterna:on_demand": "replica",
    "ServeController": "controller",
    "raylet/raylet": "raylet",
    "gcs_server": "GCS",
    "workers.openai_http": "client",
    "workers.sterna": "bare engine",
}
"""What a process's command line holds, and what it is."""


def cpu_seconds() -> dict[str, float]:
    """CPU seconds so far of every kind of process."""
    found = dict.fromkeys(KINDS.values(), 0.0)
    for process in psutil.process_iter(["cmdline", "cpu_times"]):
        line = " ".join(process.info["cmdline"] or [])
        for mark, kind in KINDS.items():
            if mark in line and process.info["cpu_times"]:
                found[kind] += process.info["cpu_times"].user + process.info["cpu_times"].system
    return found


class Measured:
    """A worker whose turns are counted in CPU too."""

    def __init__(self, spec: Spec, model: Path) -> None:
        self.worker = Worker(spec, model)

    def ask(self, questions: list[Figures]) -> tuple[Figures, dict[str, float]]:
        """The reply, with what was asked noted in each answer, and CPU milliseconds a token by kind of process."""
        before = cpu_seconds()
        reply = self.worker.ask(questions)
        after = cpu_seconds()
        for answer, question in zip(reply["answers"], questions, strict=True):
            answer |= {"asked": question["tokens"], "at": question["at"]}
        return reply, cpu_per_token(before, after, max(1, sum(len(answer["tokens"]) for answer in reply["answers"])))


def questions(count: int, prompt: int, output: int, *, rate: float | None = None, seed: int = 0) -> list[Figures]:
    """Random prompts, all at once or (Poisson) at `rate` a second."""
    rng, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        found.append({"prompt": [rng.randrange(4, VOCABULARY) for _ in range(prompt)], "tokens": output, "at": at})
        at += 0.0 if rate is None else rng.expovariate(rate)
    return found


@contextmanager
def sides(model: Path, threads: int, max_sequences: int, **settings: Any) -> Iterator[dict[str, Measured]]:
    """The bare engine and the served one, the same in everything else, both warm."""
    engine = EngineConfig(
        dtype="bfloat16", draft="off", prefix_cache=False, max_sequences=max_sequences, max_length=512, num_threads=threads
    )
    config = ServeConfig(model=str(model), name="m", port=free_port(), engine=engine, cpus_per_replica=threads, **settings)
    options = {name: value for name, value in asdict(engine).items() if name != "adapters"}
    here, omp = Path(sys.executable), {"OMP_NUM_THREADS": str(threads)}
    with running(config) as url:
        bare = Spec(name="bare", module="benchmarks.workers.sterna", python=here, needs="torch", options=options, environment=omp)
        served = Spec(name="served", module="benchmarks.workers.openai_http", python=here, needs="", options={"url": url, "name": "m"})
        both = {spec.name: Measured(spec, model) for spec in (bare, served)}
        try:
            yield both
        finally:
            for side in both.values():
                side.worker.close()


def in_turns(index: int, both: dict[str, Measured]) -> list[tuple[str, Measured]]:
    """Each round begins with another one."""
    pairs = list(both.items())
    return pairs if index % 2 else pairs[::-1]


def throughput(both: dict[str, Measured], args: argparse.Namespace) -> list[Figures]:
    """Eight streams at once: speed and CPU of either side, round by round."""
    rounds: list[Figures] = []
    for index in range(args.rounds):
        asked, found = questions(BATCH, 64, args.tokens, seed=index), {}
        for name, side in in_turns(index, both):
            reply, cpu = side.ask(asked)
            found[name] = latencies(reply) | {"cpu_ms": cpu}
        say(f"round {index + 1}: tokens/s " + ", ".join(f"{name} {f['tokens_per_s']:.0f}" for name, f in found.items()))
        rounds.append(found)
    return rounds


def time_to_first_token(both: dict[str, Measured], args: argparse.Namespace, output: int, rate: float) -> list[Figures]:
    """A load that leaves the engine idle for half of the time: seconds to first token of every request."""
    rounds = []
    for index in range(args.rounds):
        asked = questions(args.requests, 64, output, rate=rate, seed=100 + index)
        rounds.append({name: first_tokens(side.ask(asked)[0]) for name, side in in_turns(index, both)})
    return rounds


def measure(args: argparse.Namespace) -> Figures:
    """All parts asked for, going on from what the file holds."""
    file: Path = args.output
    result: Figures = json.loads(file.read_text()) if file.exists() and not args.fresh else {}
    result |= {"model": args.model, "threads": args.threads}
    model = model_folder(args.model, args.model_dir, args.made)
    missing = [part for part in args.parts if part not in result]
    if set(missing) - {"streams"}:
        with sides(model, args.threads, BATCH, max_ttft_s=args.max_ttft) as both:
            for side in both.values():
                side.ask(questions(BATCH, 64, 16))  # warm
            for part in (part for part in missing if part != "streams"):
                result |= _part(part, both, args)
                _store(file, result)
    if "streams" in missing:
        with sides(model, args.threads, NUM_STREAMS, max_streams=2 * NUM_STREAMS) as both:
            reply, cpu = both["served"].ask(questions(NUM_STREAMS, 8, args.slow_tokens, rate=50.0))
            result["streams"] = stream_figures(reply, cpu)
            _store(file, result)
    return result


def _part(part: str, both: dict[str, Measured], args: argparse.Namespace) -> Figures:
    if part == "throughput":
        return {"throughput": throughput(both, args)}
    output = 16 if part == "ttft" else 48
    seconds = min(both["bare"].ask(questions(2 * BATCH, 64, output))[0]["seconds"] for _ in range(3))
    capacity = 2 * BATCH / seconds  # requests a second that the engine bears at its best
    if part == "ttft":
        return {"rate": capacity / 2, "ttft": time_to_first_token(both, args, output, capacity / 2)}
    rate = OVERLOAD * capacity
    asked = questions(int(rate * args.seconds), 64, output, rate=rate, seed=7)
    return {"overload": overload_figures(both["served"].ask(asked)[0], args.max_ttft)}


def _store(file: Path, result: Figures) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(result, indent=1) + "\n")
    scratch.rename(file)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="llama-135m", help="a shape of benchmarks.random_model, or a model folder (default: llama-135m)")
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure (default: everything)")
    add("--rounds", type=int, default=7)
    add("--threads", type=int, default=2, help="the engine's CPU threads on either side (default: 2)")
    add("--tokens", type=int, default=96, help="tokens of each answer in throughput (default: 96)")
    add("--requests", type=int, default=24, help="requests of a round of ttft (default: 24)")
    add("--seconds", type=float, default=40.0, help="how long the overload lasts (default: 40)")
    add("--max-ttft", type=float, default=3.0, help="the overload's limit in seconds (default: 3)")
    add("--slow-tokens", type=int, default=48, help="tokens of each of the many streams (default: 48)")
    add("--model-dir", type=Path, default=Path(os.environ.get("STERNA_MODELS", "../shared/models")), help="where trained models lie")
    add("--made", type=Path, default=Path("runs/models"), help="where random models are made (default: runs/models)")
    add("--output", type=Path, default=Path("runs/serve.json"), help="file of the figures (default: runs/serve.json)")
    add("--fresh", action="store_true", help="forget earlier figures")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, keep the figures, print the table."""
    args = arguments().parse_args(argv)
    try:
        result = measure(args)
    except ValueError as error:
        print(f"benchmarks.serve: {error}", file=sys.stderr)
        return 2
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
