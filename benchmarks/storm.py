"""The storm: machines are taken from under 32 streams again and again, and every stream must end as if nothing had happened.

On a cluster of its own on this machine (one on-demand node with the gateway, three spot nodes with a replica each) streams of mixed
sampling (greedy, seeded, n = 2, stop strings, log probabilities, JSON schema) are asked once undisturbed and then, wave after wave,
under strikes timed by a recorded spot trace: half with notice (a drain, the machine's end at the deadline), half by `kill -9` of
everything on the machine. Every stream must have the tokens, the text and the log probabilities of the undisturbed run; each strike hits
at least four streams in the middle, and every stream of every wave is hit. Then the same with KV never moved, for the pauses of
recomputing; then, under the same events, a plain Ray Serve deployment of the same engine, whose lost streams are counted.

Drafts are off, so that all streams are about equally long and none is over before it is hit. Figures are kept in --output after every
wave and part: run again and it goes on where it stopped, or tells what was measured; a storm measured by other code or with other options
is put aside (storm.before.json). With --dtype float32 streams may differ by rounding: a difference that its margin does not explain counts.

    python -m benchmarks.storm                         # JSON and a plot in runs/storm/, half an hour; exit code 1 if a promise is broken
    python -m benchmarks.storm --show markdown         # the tables for docs/serving.md, of what was measured last; measures nothing
    python -m benchmarks.storm --strikes 6 --streams 16 --dtype float32 --parts kv --output runs/storm-float32
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.storm_fleet import Schedule, pauses
from benchmarks.storm_margin import Margins
from benchmarks.storm_plain import storm_plain
from benchmarks.storm_report import broken_promises, figures, markdown, plot, table
from benchmarks.storm_waves import NUM_SPOT, Service, asked_of, record, service, storm_wave, undisturbed
from cluster.console import say
from cluster.storage import digest_of
from pipelines.drill_streams import Heard, Question
from serve.engine.config import EngineConfig
from serve.engine.text import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
CODE = ("benchmarks/storm*.py", "pipelines/drill*.py", "serve/**/*.py", "serve/**/*.cpp", "serve/**/*.h", "cluster/**/*.py")
PARTS = ("kv", "recompute", "plain")
FEWEST_STREAMS = 12
_PROMPT_ROOM = 300
_NO_PLAN = ("output", "fresh", "parts", "show")


class Results:
    """What was measured so far, on disk after every change."""

    def __init__(self, folder: Path, plan: dict[str, str], *, fresh: bool) -> None:
        self._folder, self.file = folder, folder / "storm.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        if self.found and (fresh or self.found["plan"] != plan):
            other = ", ".join(name for name in plan if self.found["plan"].get(name) != plan[name])
            say(f"storm: {self.file} was measured with another {other or 'start'}: put aside, and measured anew")
            self.file.rename(folder / "storm.before.json")
            self.found = {}
        self.found = self.found or {"plan": plan, "commit": _commit(), "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}

    def write(self) -> None:
        """All of it, at once."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(json.dumps(self.found, indent=1))
        fresh.rename(self.file)
        if self.waves("kv") or self.waves("recompute"):
            plot(self.found, self._folder / "storm.png")

    def waves(self, part: str) -> list[dict[str, Any]]:
        """Of a part, so far."""
        waves: list[dict[str, Any]] = self.found.get(part, {}).get("waves", [])
        return waves

    def add(self, part: str, wave: dict[str, Any]) -> None:
        """One more wave."""
        waves = [*self.waves(part), wave]
        self.put(part, {**figures(waves), "waves": waves})

    def put(self, part: str, what: dict[str, Any]) -> None:
        """A part's figures. They are marked if the code is not what the storm began with: fresh machines run it as it is now."""
        self.found[part] = what
        self.found["code_changed"] = self.found.get("code_changed", False) or code_digest() != self.found["plan"]["code"]
        self.write()

    def strikes(self, part: str) -> list[dict[str, Any]]:
        """Of a part, so far."""
        return [strike for wave in self.waves(part) for strike in wave["strikes"]]


def _commit() -> str:
    """The commit that is checked out, for people; the plan has the digest of the code itself."""
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def code_digest(root: Path = ROOT) -> str:
    """Of every source file that the figures depend on."""
    files = sorted({file for pattern in CODE for file in root.glob(pattern)})
    return digest_of([(str(file.relative_to(root)), file.read_bytes().hex()) for file in files])


def storm_ours(args: argparse.Namespace, config: EngineConfig, results: Results, part: str, num_strikes: int) -> None:
    """Our own service under strikes, wave after wave, going on from what there is."""
    schedule = Schedule(tuple(pauses(args.trace, num_strikes, args.pause_s)), args.notice_s)
    margins = Margins(args.model, config)
    done = len(results.strikes(part))
    if done >= num_strikes:
        return
    with service(args.model, config, "auto" if part == "kv" else "never") as ours:
        asked, want = _undisturbed(args, ours, results)
        for key in ours.keys[1:]:
            if done >= num_strikes:
                return
            wave, storm = storm_wave(ours, key, asked, want, schedule, done, num_strikes)
            results.add(part, record(wave, storm, want, ours.journal(), margins.explain))
            done += len(storm.strikes)
            f = results.found[part]
            say(
                f"storm: {part}: wave {f['num_waves']} took {wave.ended_s - wave.began_s:.0f} s, {done} of {num_strikes} strikes; "
                f"so far {f['complete']} of {f['streams']} streams complete, {len(f['differences'])} unlike undisturbed, "
                f"strikes by stream {json.dumps(f['hits'])}"
            )
        raise RuntimeError(f"storm: {len(ours.keys) - 1} waves had fewer than {num_strikes} strikes; ask for more --tokens")


def _undisturbed(args: argparse.Namespace, ours: Service, results: Results) -> tuple[list[Question], list[list[Heard]]]:
    """Asked once for all parts: the questions, and what is heard when nothing happens."""
    if "undisturbed" in results.found:
        stored = results.found["undisturbed"]
        return [Question(**asked) for asked in stored["asked"]], [[Heard(**heard) for heard in choices] for choices in stored["heard"]]
    asked = asked_of(Path(args.model).name, _prompts(args), args.streams, args.tokens, args.seed)
    say(f"storm: {len(asked)} undisturbed questions of up to {args.tokens} tokens")
    began = time.time()
    asked, want = undisturbed(ours.url, ours.keys[0], asked, args.tokens)
    say(f"storm: recorded in {time.time() - began:.0f} s; now the strikes")
    plain = [[{**asdict(heard), "times": []} for heard in choices] for choices in want]
    results.put("undisturbed", {"asked": [asdict(question) for question in asked], "heard": plain, "took_s": time.time() - began})
    return asked, want


def _prompts(args: argparse.Namespace) -> list[str]:
    """Those that leave room for the tokens asked for."""
    tokenizer = Tokenizer(Path(args.model))
    with gzip.open(args.prompts, "rt") as lines:
        prompts = [json.loads(line)["prompt"] for line in lines]
    fitting = [prompt for prompt in prompts[: 2 * args.streams] if len(tokenizer.encode(prompt)) <= _PROMPT_ROOM]
    if not fitting:
        raise ValueError(f"{args.prompts}: no prompt of up to {_PROMPT_ROOM} tokens among the first {2 * args.streams}; use other prompts")
    return fitting


def _plain(args: argparse.Namespace, config: EngineConfig, results: Results) -> dict[str, Any]:
    """The peer, struck at the times at which ours was, if it was."""
    strikes = results.strikes("kv")[: args.strikes]
    waits = [max(0.0, b["at_s"] - a["gone_s"]) for a, b in pairwise(strikes)]
    times = [args.pause_s, *waits] if len(strikes) == args.strikes else pauses(args.trace, args.strikes, args.pause_s)
    tokenizer = Tokenizer(Path(args.model))
    prompts = [list(tokenizer.encode(prompt)) for prompt in _prompts(args)]
    return storm_plain(args.model, config, prompts, args.streams, args.tokens, Schedule(tuple(times), args.notice_s), args.strikes)


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
    add("--streams", type=int, default=32, help=f"streams at once (default: 32; at least {FEWEST_STREAMS})")
    add("--tokens", type=int, default=1700, help="tokens of each (default: 1700)")
    add("--notice-s", type=float, default=10.0, help="seconds of notice (default: 10)")
    add("--pause-s", type=float, default=2.5, help="mean time between strikes, beyond what replacement takes (default: 2.5)")
    add("--dtype", default="float64", choices=["float64", "float32", "bfloat16"], help="default: float64, where equality is exact")
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="default: all three")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("runs/storm"))
    add("--fresh", action="store_true", help="measure anew, whatever is there")
    add("--show", choices=["table", "markdown"], help="print what was measured, and measure nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the table, write JSON and a plot."""
    args = arguments().parse_args(argv)
    try:
        if args.show:
            found = json.loads((args.output / "storm.json").read_text())
            print(markdown(found) if args.show == "markdown" else table(found))
            return 0
        return _verdict(args, _measure(args))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"benchmarks.storm: {error}", file=sys.stderr)
        return 2


def _verdict(args: argparse.Namespace, found: dict[str, Any]) -> int:
    print(table(found))
    broken = broken_promises(found, num_strikes=args.strikes, all_hit=args.strikes >= NUM_SPOT)
    print("\n".join(f"BROKEN: {what}" for what in broken) or "every promise held")
    return 1 if broken else 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """The parts asked for that are not there yet; all there is."""
    if args.streams < FEWEST_STREAMS:
        raise ValueError(f"--streams: {args.streams} cannot be four and more on each of three machines; use at least {FEWEST_STREAMS}")
    args.model = str(Path(args.model).resolve())
    args.tokens = min(args.tokens, _context(Path(args.model)) - _PROMPT_ROOM)
    plan = {name: str(value) for name, value in vars(args).items() if name not in _NO_PLAN} | {"code": code_digest()}
    results = Results(args.output, plan, fresh=args.fresh)
    config = EngineConfig(dtype=args.dtype, num_threads=1, max_sequences=32, draft="off")
    for part, strikes in (("kv", args.strikes), ("recompute", max(4, args.strikes // 3))):
        if part in args.parts:
            storm_ours(args, config, results, part, strikes)
    if "plain" in args.parts and "plain" not in results.found:
        results.put("plain", _plain(args, config, results))
    return results.found


def _context(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["max_position_embeddings"])


if __name__ == "__main__":
    sys.exit(main())
