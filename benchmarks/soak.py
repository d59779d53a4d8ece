"""The long run: mixed random requests on engines with too few blocks, cancelled, preempted, moved; nothing may leak, starve or change.

Several engines with the same weights live in one process: every policy, both ways to preempt, drafts on and off, int8 KV, prefix cache on
and off. An episode sends random requests to one of them (shared prefixes, penalties, stop strings, grammars, tenants, clients,
priorities); some are cancelled at a random step, some are moved to another engine as a snapshot's JSON. When an engine is idle its
invariants are checked, and some finished requests are asked again, alone, of an engine that nothing disturbs: same tokens, same text,
same reason to stop. Resident memory is noted after every episode; its slope after the first third must be about zero.

    python -m benchmarks.soak --minutes 30             # JSON and a plot in runs/soak/; exit code 1 if a promise is broken
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from pathlib import Path

from benchmarks.intervals import percentile
from benchmarks.mixed import Account, Mixed
from cluster.console import say

MAX_WAIT_S = 60.0
LEAK_SHARE = 0.02
"""Growth of resident memory over the fitted part, as a share of it, above which the run fails (if the interval excludes zero too)."""


def resident_mb() -> float:
    """This process's resident memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def slope(memory: list[tuple[float, float]]) -> dict[str, float]:
    """Megabytes per hour after the first third (Theil and Sen, with a 95 % interval), and the growth as a share."""
    from scipy.stats import theilslopes

    points = [p for p in memory if p[0] >= memory[-1][0] / 3]
    seconds, megabytes = zip(*points, strict=True)
    middle, _, low, high = theilslopes(megabytes, seconds)
    growth = middle * (seconds[-1] - seconds[0]) / megabytes[0]
    return {"mb_per_hour": middle * 3600, "low": low * 3600, "high": high * 3600, "growth": growth}


def verdicts(account: Account, fitted: dict[str, float], native: bool) -> dict[str, bool]:
    """Each promise and whether it held. Our kernels promise equal tokens; torch's may differ where two tokens are nearly as likely."""
    allowed = 0 if native else max(1, account.compared // 50)
    return {
        "no leak": not (fitted["low"] > 0 and fitted["growth"] > LEAK_SHARE),
        "no starvation": max(account.waits_s) < MAX_WAIT_S,
        "undisturbed tokens": len(account.different) <= allowed,
    }


def plot(memory: list[tuple[float, float]], file: Path) -> None:
    """Resident memory over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([at / 60 for at, _ in memory], [mb for _, mb in memory], linewidth=1)
    axes.set(xlabel="minutes", ylabel="resident MB", title="Memory during the long run", ylim=(0, None))
    figure.savefig(file, dpi=130)


def read_texts(model: Path, file: Path) -> list[list[int]]:
    """Real code as tokens: HumanEval's prompts with their solutions, twice in a row (so that drafts hold)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    with gzip.open(file, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return [tokenizer.encode((row["prompt"] + row["canonical_solution"]) * 2, add_special_tokens=False).ids for row in rows]


def run(soak: Mixed, minutes: float) -> None:
    """Episodes until the time is over; memory after each."""
    began = told = time.perf_counter()
    while (now := time.perf_counter()) - began < 60 * minutes:
        soak.episode()
        account = soak.account
        account.memory.append((time.perf_counter() - began, resident_mb()))
        if now - told > 30:
            told = now
            say(
                f"{(now - began) / 60:.1f} of {minutes:g} min: {account.requests:,} requests, {account.tokens:,} tokens, "
                f"{account.cancelled:,} cancelled, {account.moved:,} moved, {len(account.different)} of {account.compared:,} differ, "
                f"{account.memory[-1][1]:,.0f} MB"
            )


def report(soak: Mixed, folder: Path, minutes: float) -> bool:
    """Print, plot and store; whether every promise held."""
    account, fitted = soak.account, slope(soak.account.memory)
    native = type(soak.alone["auto"].runner).__name__ == "NativeRunner"
    held = verdicts(account, fitted, native)
    counters = {name: engine.stats() for name, engine in soak.engines.items()}
    print(f"{account.requests:,} requests, {account.tokens:,} tokens, {account.cancelled:,} cancelled, {account.moved:,} moved")
    for name, now in counters.items():
        keys = ("steps", "preemptions", "swapped", "cached_tokens", "drafted", "accepted")
        print(f"  {name:<30} " + ", ".join(f"{now[k]:,.0f} {k.replace('_', ' ')}" for k in keys if k in now))
    print(f"first token: median {percentile(account.waits_s, 50):.3f} s, 99 % {percentile(account.waits_s, 99):.3f} s, "
          f"longest {max(account.waits_s):.3f} s (bound {MAX_WAIT_S:g} s)")  # fmt: skip
    print(f"memory: {fitted['mb_per_hour']:+.2f} MB an hour (95 %: {fitted['low']:+.2f} to {fitted['high']:+.2f}), "
          f"{fitted['growth']:+.2%} over the fitted part")  # fmt: skip
    print(f"asked again undisturbed: {account.compared:,}, different {len(account.different)}", *account.different[:5], sep="\n  ")
    print(", ".join(f"{name}: {'held' if ok else 'BROKEN'}" for name, ok in held.items()))
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"minutes": minutes, "held": held, "memory": account.memory, "slope": fitted, "engines": counters, "native": native}
    figures |= {k: getattr(account, k) for k in ("requests", "tokens", "cancelled", "moved", "compared", "different")}
    (folder / "soak.json").write_text(json.dumps(figures, indent=1))
    plot(account.memory, folder / "memory.png")
    return all(held.values())


def main(argv: list[str] | None = None) -> int:
    """Run, report; 0 if every promise held."""
    shared = Path("../shared")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models, data = (Path(os.environ.get(f"STERNA_{n.upper()}", shared / n)) for n in ("models", "data"))
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--model", type=Path, default=models / "tiny-code")
    parser.add_argument("--prompts", type=Path, default=data / "code/HumanEval.jsonl.gz")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/soak"))
    parser.add_argument("--fresh", action="store_true", help="run even if a run as long has passed already")
    args = parser.parse_args(argv)
    file = args.output / "soak.json"
    if not args.fresh and file.exists():
        last = json.loads(file.read_text())
        if last["minutes"] >= args.minutes and all(last["held"].values()):
            print(f"{file}: {last['minutes']:g} minutes have passed already; --fresh runs them again")
            return 0
    soak = Mixed(args.model, read_texts(args.model, args.prompts), args.seed, args.threads)
    run(soak, args.minutes)
    return 0 if report(soak, args.output, args.minutes) else 1


if __name__ == "__main__":
    sys.exit(main())
