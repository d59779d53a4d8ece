"""Drafters side by side on answers that a model really gave: what each would have saved, and at what price.

A replay gives a drafter the prompt, lets it propose, accepts what the recorded answer confirms and one token more, and goes on so to the
answer's end. With k tokens drafted, a step costs 1 + g·k, where g is the cost of verifying one more token as a share of a
plain step: about 0.02 where steps are bound by reading weights (a GPU or bf16 on a CPU, one sequence), 0.3 and more where
they are bound by arithmetic (full batches, int8 kernels). Speed-up = tokens / Σ(1 + g·k) over all steps, those without a draft too;
1.00 is decoding without drafts. Requests are replayed in the file's order; stores shared between requests learn each finished answer.

Promise: every drafter sees the same text through the same contract and none sees the answer early. `µs` is the drafter's own processor
time per answer token, prompt included (the least of `--repeats`, request by request). Price: a minute.

    python -m benchmarks.draft_replay --data vicuna7b-mtbench.jsonl.gz --json runs/draft_replay.json --plot runs/draft_replay.svg

The file holds one JSON object a line: `prompt_ids` and `answer_ids` (token ids), perhaps a `category`; .gz is unpacked.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.draft_peers import PromptLookup, PublishedAnpd, SuffixCounts, SuffixDecoding
from serve.engine.draft import AnpdDrafter, Drafter, NgramDrafter, SharedNgrams

COSTS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
CAPACITY = 200_000
"""n-grams in the store of earlier answers."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A recorded request."""

    prompt: list[int]
    answer: list[int]
    category: str = ""


@dataclass(slots=True)
class Tally:
    """Of a replay: tokens emitted, steps, tokens drafted, and the drafter's seconds."""

    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    seconds: float = 0.0

    def speedup(self, verify_cost: float) -> float:
        """Against decoding without drafts, at this g."""
        return self.tokens / (self.steps + verify_cost * self.drafted)


@dataclass(frozen=True, slots=True)
class Row:
    """A way of drafting: `start()` gives what makes a drafter for each request, and what learns each finished answer."""

    name: str
    start: Callable[[], tuple[Callable[[], Drafter], Callable[[list[int]], None]]]
    looks_at_cost: bool = False


def _alone(make: Callable[[], Drafter]) -> Callable[[], tuple[Callable[[], Drafter], Callable[[list[int]], None]]]:
    return lambda: (make, lambda answer: None)


def _suffix(factor: float) -> Callable[[], tuple[Callable[[], Drafter], Callable[[list[int]], None]]]:
    def start() -> tuple[Callable[[], Drafter], Callable[[list[int]], None]]:
        past = SuffixCounts(depth=12)
        return lambda: SuffixDecoding(past, factor), lambda answer: past.extend([], answer)

    return start


def _ours() -> tuple[Callable[[], Drafter], Callable[[list[int]], None]]:
    shared = SharedNgrams(CAPACITY)
    return lambda: NgramDrafter(shared=shared), shared.learn


ROWS = (
    Row("prompt lookup (3, 10)", _alone(PromptLookup)),
    Row("ANPD as published (5, 7)", _alone(PublishedAnpd)),
    Row("ANPD, corrected (5, 7)", _alone(lambda: AnpdDrafter(order=5, max_draft=7)), looks_at_cost=True),
    Row("suffix decoding (1)", _suffix(1.0)),
    Row("suffix decoding (2)", _suffix(2.0)),
    Row("ours, each request alone", _alone(NgramDrafter), looks_at_cost=True),
    Row("ours", _ours, looks_at_cost=True),
)


def read_turns(file: Path) -> list[Turn]:
    """The recorded requests. ValueError for a line that is none."""
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
        turns = []
        for number, line in enumerate(lines, 1):
            data: dict[str, Any] = json.loads(line)
            if not data.get("prompt_ids") or not data.get("answer_ids"):
                raise ValueError(f"{file}: line {number} lacks prompt_ids or answer_ids; give a list of token ids for each")
            turns.append(Turn(data["prompt_ids"], data["answer_ids"], data.get("category", "")))
        return turns


def replay(drafter: Drafter, turn: Turn, verify_cost: float) -> Tally:
    """One request from its prompt to its end."""
    tally, clock, answer, at = Tally(), time.process_time, turn.answer, 0
    began = clock()
    drafter.observe(turn.prompt)
    while at < len(answer):
        draft = drafter.propose(verify_cost)[: len(answer) - at - 1]
        held = 0
        while held < len(draft) and draft[held] == answer[at + held]:
            held += 1
        drafter.judge(held)
        drafter.observe(answer[at : at + held + 1])
        at += held + 1
        tally.steps += 1
        tally.drafted += len(draft)
    tally.seconds = clock() - began
    tally.tokens = len(answer)
    return tally


def replay_all(row: Row, turns: list[Turn], verify_cost: float, repeats: int = 1) -> list[Tally]:
    """All requests in order, one tally each; the seconds are the least of the repeats, learning included."""
    best: list[Tally] = []
    for _ in range(repeats):
        make, learn = row.start()
        tallies = []
        for turn in turns:
            tally = replay(make(), turn, verify_cost)
            began = time.process_time()
            learn(turn.answer)
            tally.seconds += time.process_time() - began
            tallies.append(tally)
        for tally, earlier in zip(tallies, best, strict=False):
            tally.seconds = min(tally.seconds, earlier.seconds)
        best = tallies
    return best


def total(tallies: list[Tally]) -> Tally:
    """Their sum."""
    return Tally(*(sum(getattr(t, name) for t in tallies) for name in ("tokens", "steps", "drafted", "seconds")))


def compare(turns: list[Turn], repeats: int) -> list[dict[str, Any]]:
    """A row of figures for each drafter."""
    found = []
    for row in ROWS:
        by_cost: dict[float, list[Tally]] = {}
        for cost in COSTS:
            if row.looks_at_cost or not by_cost:
                by_cost[cost] = replay_all(row, turns, cost, repeats if not by_cost else 1)
            else:
                by_cost[cost] = by_cost[COSTS[0]]
        cheapest = total(by_cost[COSTS[0]])
        categories = sorted({turn.category for turn in turns})
        parts = {c: total([t for t, turn in zip(by_cost[COSTS[0]], turns, strict=True) if turn.category == c]) for c in categories}
        found.append(
            {
                "drafter": row.name,
                "speedup": {str(cost): round(total(tallies).speedup(cost), 4) for cost, tallies in by_cost.items()},
                "tokens_per_step": round(cheapest.tokens / cheapest.steps, 4),
                "drafted_per_step": round(cheapest.drafted / cheapest.steps, 3),
                "us_per_token": round(cheapest.seconds / cheapest.tokens * 1e6, 1),
                "speedup_by_category": {name: round(part.speedup(COSTS[0]), 4) for name, part in parts.items()},
                "counts": asdict(cheapest),
            }
        )
    return found


def print_table(rows: list[dict[str, Any]]) -> None:
    """Speed-ups by g; then what is true at the first g."""
    print(f"{'speed-up at g =':26}" + "".join(f"{cost:>7g}" for cost in COSTS) + f"{'tokens/step':>13}{'drafted':>9}{'µs':>7}")
    for row in rows:
        figures = "".join(f"{row['speedup'][str(cost)]:7.2f}" for cost in COSTS)
        print(f"{row['drafter']:26}{figures}{row['tokens_per_step']:13.2f}{row['drafted_per_step']:9.2f}{row['us_per_token']:7.1f}")
    print(f"tokens per step, drafted tokens per step and µs per token at g = {COSTS[0]}")


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Speed-up against g, a line per drafter, as SVG or PNG by the file's ending."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.fonttype"] = "none"
    canvas, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for row in rows:
        ours = row["drafter"].startswith("ours")
        style: dict[str, Any] = {"linewidth": 2.4} if row["drafter"] == "ours" else {"linewidth": 1.2, "linestyle": "-" if ours else "--"}
        axes.plot(COSTS, [row["speedup"][str(cost)] for cost in COSTS], label=row["drafter"], marker="o", markersize=3, **style)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(COSTS, [f"{cost:g}" for cost in COSTS], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("g: cost of one more verified token, in plain steps")
    axes.set_ylabel("speed-up")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    canvas.savefig(file)
    pyplot.close(canvas)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with prompt_ids and answer_ids")
    parser.add_argument("--first", type=int, help="replay only so many requests")
    parser.add_argument("--repeats", type=int, default=3, help="of each replay at the first g, for the time (default 3)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--plot", type=Path, help="where to draw speed-up against g (.svg or .png)")
    options = parser.parse_args()
    turns = read_turns(options.data)[: options.first]
    rows = compare(turns, options.repeats)
    print(f"{options.data.name}: {len(turns)} requests, {sum(len(turn.answer) for turn in turns):,} answer tokens")
    print_table(rows)
    for file in (options.json, options.plot):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
    if options.json:
        options.json.write_text(json.dumps({"data": options.data.name, "requests": len(turns), "rows": rows}, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
