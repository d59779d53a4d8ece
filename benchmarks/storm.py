"""The storm: machines are taken from under 32 streams again and again, and every stream must end as if nothing had happened.

On a cluster of its own on this machine (one on-demand node with the gateway, three spot nodes with a replica each) streams of mixed
sampling (greedy, seeded, n = 2, stop strings, log probabilities, JSON schema) are asked once undisturbed and then, wave after wave,
under strikes timed by a recorded spot trace: half with notice (a drain, the machine's end at the deadline), half by `kill -9` of
everything on the machine. Every stream must have the tokens, the text and the log probabilities of the undisturbed run; each strike hits
at least four streams in the middle, and strikes go on until every stream of the last wave was hit. Then the same with KV never moved, for
the pauses of recomputing; then, under the same events, a plain Ray Serve deployment of the same engine, whose lost streams are counted.

    python -m benchmarks.storm                         # JSON and a plot in runs/storm/; exit code 1 if a promise is broken
    python -m benchmarks.storm --strikes 4 --streams 8 --tokens 400 --parts kv      # some minutes
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.serve
from ray.serve.config import HTTPOptions

from benchmarks.storm_fleet import Storm, pauses
from benchmarks.storm_plain import PLAIN, Clients, plain_application
from benchmarks.storm_report import Outcome, broken_promises, plot, table
from cluster.console import say
from pipelines.drill import fleet_of, replicas_running
from pipelines.drill_streams import Heard, Question, ask_all, questions
from serve.app import APP, free_port, gateways_of, quiet_ray, running
from serve.config import ServeConfig
from serve.engine.config import EngineConfig

NUM_SPOT = 3
WARM_TOKENS = 20
"""A stream is in the middle of generation from here on."""
_PROMPT_ROOM = 300
_FRAME_S = 0.05


def asked_of(model: str, prompts: Sequence[str], count: int, tokens: int, seed: int) -> list[Question]:
    """`count` questions of six kinds; those with a JSON schema ask for lists of words too long to end early."""
    num_json = count // 6
    words = {"type": "array", "items": {"type": "string", "pattern": "[a-z]{6,12}"}, "minItems": tokens // 4}
    common = {"model": model, "max_tokens": tokens, "stream": True, "return_token_ids": True, "structured_outputs": {"json": words}}
    held = [
        Question("json schema", {**common, "prompt": prompts[i % len(prompts)], "temperature": 0.8, "seed": seed + 1000 + i})
        for i in range(num_json)
    ]
    return questions(prompts, model=model, count=count - num_json, tokens=tokens, seed=seed) + held


def storm_ours(args: argparse.Namespace, config: EngineConfig, prompts: Sequence[str], move_kv: str, num_strikes: int) -> Outcome:
    """Our own service under strikes."""
    with quiet_ray(), fleet_of(NUM_SPOT) as machines:
        serving = ServeConfig(
            model=args.model,
            port=free_port(),
            spot_replicas=NUM_SPOT,
            on_demand_replicas=0,
            engine=config,
            frame_s=_FRAME_S,
            move_kv=move_kv,
        )  # type: ignore[arg-type]  # one of the literals, checked by ServeConfig
        with running(serving) as url:
            asked = asked_of(Path(args.model).name, prompts, args.streams, args.tokens, args.seed)
            say(f"storm: {len(asked)} undisturbed streams of up to {args.tokens} tokens")
            began = time.time()
            undisturbed = asyncio.run(ask_all(url, asked))
            say(f"storm: recorded in {time.time() - began:.0f} s; now the strikes")
            return _struck(args, machines, url, asked, undisturbed, num_strikes)


def _struck(
    args: argparse.Namespace, machines: Any, url: str, asked: list[Question], undisturbed: list[list[Heard]], num_strikes: int
) -> Outcome:
    journal = gateways_of(APP).journal
    waves = Waves(url, asked)
    storm = Storm(machines, lambda: _live(journal.remote().result(), waves.began_s), lambda: replicas_running(APP, "spot") >= NUM_SPOT)
    thread = threading.Thread(target=lambda: asyncio.run(waves.run()), name="clients")
    thread.start()
    try:
        notices = itertools.cycle((args.notice_s, None))
        for pause_s in pauses(args.trace, num_strikes, args.pause_s):
            time.sleep(pause_s)  # the trace's
            if not storm.strike(next(notices), over=lambda: waves.failed):
                break
        waves.stopping = True
        while thread.is_alive() and _unhit(storm):
            storm.strike(next(notices), over=lambda: not thread.is_alive() or not _unhit(storm))
    finally:
        waves.stopping = True
        thread.join()
    if waves.failure is not None:
        raise waves.failure
    rows = journal.remote().result()
    return Outcome(asked, undisturbed, waves.heard, storm.strikes, [row for row in rows if row["start_s"] >= waves.first_s])


class Waves:
    """All questions at once, again and again until told to stop."""

    def __init__(self, url: str, asked: list[Question]) -> None:
        self._url, self._asked = url, asked
        self.heard: list[list[list[Heard]]] = []
        self.first_s = self.began_s = time.time()
        self.stopping = False
        self.failure: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether a stream has failed."""
        return self.failure is not None

    async def run(self) -> None:
        """Until `stopping`, and then to the end of the wave."""
        try:
            while not (self.stopping and self.heard):
                self.began_s = time.time()
                self.heard.append(await ask_all(self._url, self._asked))
                say(f"storm: wave {len(self.heard)} of {len(self._asked)} streams has ended")
        except Exception as error:  # told in the main thread
            self.failure = error


def _live(rows: Sequence[Mapping[str, Any]], since_s: float) -> dict[str, str]:
    total: dict[str, int] = {}
    where: dict[str, str] = {}
    for row in rows:
        if row["start_s"] >= since_s - 1.0:
            total[row["stream"]] = total.get(row["stream"], 0) + row["num_tokens"]
            if row["end"] is None and row["num_tokens"]:
                where[row["stream"]] = row["node_id"]
    return {stream: node for stream, node in where.items() if total[stream] >= WARM_TOKENS}


def _unhit(storm: Storm) -> bool:
    return any(not storm.hits[stream] for stream in storm.live())


def storm_plain(args: argparse.Namespace, config: EngineConfig, prompts: list[list[int]], num_strikes: int) -> dict[str, Any]:
    """The plain deployment under the same pauses and notices."""
    with quiet_ray(), fleet_of(NUM_SPOT) as machines:
        port = free_port()
        ray.serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=port))
        try:
            ray.serve.run(plain_application(args.model, config, NUM_SPOT), name=PLAIN, route_prefix="/plain")
            clients = Clients(f"http://127.0.0.1:{port}/plain", prompts, args.tokens)
            storm = Storm(machines, lambda: dict(clients.node_of), lambda: replicas_running(PLAIN, PLAIN) >= NUM_SPOT)
            thread = threading.Thread(target=lambda: asyncio.run(clients.run(args.streams)), name="clients")
            thread.start()
            try:
                notices = itertools.cycle((args.notice_s, None))
                for pause_s in pauses(args.trace, num_strikes, args.pause_s):
                    time.sleep(pause_s)  # the trace's
                    storm.strike(next(notices), over=lambda: not thread.is_alive())
            finally:
                clients.stopping = True
                thread.join()
        finally:
            ray.serve.shutdown()
    hit = {stream for strike in storm.strikes for stream in strike.hit}
    return {"streams": clients.num_done + len(clients.lost), "lost": len(clients.lost), "hit": len(hit), "strikes": len(storm.strikes)}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    data = Path(os.environ.get("STERNA_DATA", "../shared/data"))
    models = Path(os.environ.get("STERNA_MODELS", "../shared/models"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default=str(models / "tiny-code"))
    add("--prompts", type=Path, default=data / "code/HumanEval.jsonl.gz", help="jsonl.gz with `prompt`")
    add("--trace", type=Path, default=data / "traces/spot/bamboo-p3.csv", help="ms, add or remove, node: when machines go")
    add("--strikes", type=int, default=22, help="machines taken, half with notice (default: 22); more if a stream was never hit")
    add("--streams", type=int, default=32, help="streams at once (default: 32)")
    add("--tokens", type=int, default=1700, help="tokens of each (default: 1700)")
    add("--notice-s", type=float, default=10.0, help="seconds of notice (default: 10)")
    add("--pause-s", type=float, default=4.0, help="mean time between strikes, beyond what replacement takes (default: 4)")
    add("--dtype", default="float64", choices=["float64", "float32", "bfloat16"], help="default: float64, where equality is exact")
    add("--parts", nargs="+", default=["kv", "recompute", "plain"], choices=["kv", "recompute", "plain"], help="default: all three")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("runs/storm"))
    add("--fresh", action="store_true", help="run even if the same storm has passed already")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run, print the table, write JSON and a plot."""
    args = arguments().parse_args(argv)
    args.model = str(Path(args.model).resolve())
    stored = args.output / "storm.json"
    try:
        args.tokens = min(args.tokens, _context(Path(args.model)) - _PROMPT_ROOM)
        plan = {k: str(v) for k, v in vars(args).items() if k not in ("output", "fresh")}
        if not args.fresh and stored.exists() and (found := json.loads(stored.read_text()))["plan"] == plan and not broken_promises(found):
            print(f"{table(found)}\nas measured before (--fresh measures anew)")
            return 0
        found, ours = _measure(args, plan)
    except (ValueError, OSError) as error:
        print(f"benchmarks.storm: {error}", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    stored.write_text(json.dumps(found, indent=1))
    plot(ours, args.output / "storm.png")
    print(table(found))
    broken = broken_promises(found)
    print("\n".join(f"BROKEN: {what}" for what in broken) or "every promise held")
    return 1 if broken else 0


def _measure(args: argparse.Namespace, plan: dict[str, str]) -> tuple[dict[str, Any], dict[str, Outcome]]:
    """The parts asked for, as figures and as they were."""
    config = EngineConfig(dtype=args.dtype, num_threads=1, max_sequences=32)
    with gzip.open(args.prompts, "rt") as lines:
        prompts = [json.loads(line)["prompt"] for line in lines]
    found: dict[str, Any] = {"plan": plan}
    ours = {}
    for part, move_kv, strikes in (("kv", "auto", args.strikes), ("recompute", "never", max(4, args.strikes // 3))):
        if part in args.parts:
            ours[part] = storm_ours(args, config, prompts, move_kv, strikes)
            found[part] = {**ours[part].figures(), "journal": ours[part].plain()}
            say(table({part: found[part]}))
    if "plain" in args.parts:
        found["plain"] = storm_plain(args, config, _encoded(Path(args.model), prompts), args.strikes)
    return found, ours


def _context(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["max_position_embeddings"])


def _encoded(model: Path, prompts: Sequence[str]) -> list[list[int]]:
    from serve.engine.text import Tokenizer

    tokenizer = Tokenizer(model)
    return [list(tokenizer.encode(prompt)) for prompt in prompts[:64]]


if __name__ == "__main__":
    sys.exit(main())
