"""What a storm did, as figures, a table, a plot and a verdict. Pure but for the plot."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.storm_fleet import FEWEST, Strike
from pipelines.drill_streams import Heard, Question, difference

__all__ = ["Outcome", "broken_promises", "plot", "table"]

BLOCK = 16
"""Tokens of a KV block: the most that a stream whose KV moved may compute again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One storm over our own service."""

    asked: Sequence[Question]
    undisturbed: Sequence[Sequence[Heard]]
    heard: Sequence[Sequence[Sequence[Heard]]]
    """By wave, question, choice."""
    strikes: Sequence[Strike]
    stays: Sequence[Mapping[str, Any]]
    """The gateway's journal."""

    def differences(self) -> list[str]:
        """Every stream that is not what it was undisturbed."""
        return [
            f"wave {w + 1}, {question.kind} {i}, choice {c}: {what}"
            for w, wave in enumerate(self.heard)
            for i, (question, wants, gots) in enumerate(zip(self.asked, self.undisturbed, wave, strict=True))
            for c, (want, got) in enumerate(zip(wants, gots, strict=True))
            if (what := difference(want, got))
        ]

    def gaps(self) -> dict[str, list[float]]:
        """Seconds without a token, by how the stream went on; sorted."""
        found: dict[str, list[float]] = {}
        for stay in self.stays:
            if stay["gap_s"] is not None and stay["how"] in ("kv", "recompute", "crash"):
                found.setdefault(stay["how"], []).append(stay["gap_s"])
        return {how: sorted(gaps) for how, gaps in sorted(found.items())}

    def hits(self) -> Counter[str]:
        """Strikes in the middle of generation, by stream; those never hit too."""
        found = Counter({stay["stream"]: 0 for stay in self.stays if stay["num_tokens"]})
        found.update(stream for strike in self.strikes for stream in strike.hit)
        return found

    def plain(self) -> dict[str, Any]:
        """Strikes and stays as plain data, to find out what happened."""
        return {"strikes": [asdict(strike) for strike in self.strikes], "stays": [dict(stay) for stay in self.stays]}

    def figures(self) -> dict[str, Any]:
        """All of it as plain data."""
        choices = [choice for wave in self.heard for question in wave for choice in question]
        moved = [stay for stay in self.stays if stay["how"] == "kv" and stay["num_computed"] is not None]
        return {
            "streams": len(choices),
            "complete": sum(choice.finish_reason is not None for choice in choices),
            "tokens": sum(len(choice.tokens) for choice in choices),
            "differences": self.differences(),
            "strikes": len(self.strikes),
            "with_notice": sum(strike.notice_s is not None for strike in self.strikes),
            "fewest_hit": min((len(strike.hit) for strike in self.strikes), default=0),
            "hits": {str(times): count for times, count in sorted(Counter(self.hits().values()).items())},  # as JSON has it
            "most_computed_after_kv": max((stay["num_computed"] for stay in moved), default=None),
            "kv_bytes": sum(stay["num_bytes"] for stay in self.stays),
            "gaps": {how: _spread(gaps) for how, gaps in self.gaps().items()},
            "reasons": dict(Counter(stay["why"].split(":")[0] for stay in self.stays if stay["how"] == "recompute")),
        }


def _spread(gaps: Sequence[float]) -> dict[str, float]:
    return {"count": len(gaps), "p50_s": statistics.median(gaps), "p99_s": float(np.percentile(gaps, 99)), "longest_s": gaps[-1]}


def table(found: Mapping[str, Any]) -> str:
    """For people."""
    lines = []
    for part in ("kv", "recompute"):
        if part not in found:
            continue
        f = found[part]
        lines += [
            f"{'KV moves where it pays' if part == 'kv' else 'KV never moves'}: {f['strikes']} strikes ({f['with_notice']} with notice), "
            f"at least {f['fewest_hit']} streams hit by each",
            f"  {f['complete']} of {f['streams']} streams complete, {f['tokens']:,} tokens; {len(f['differences'])} unlike undisturbed",
            "  strikes by stream: " + ", ".join(f"{count} streams hit {times}x" for times, count in f["hits"].items()),
            f"  computed again after a move with KV: at most {f['most_computed_after_kv']} tokens; {f['kv_bytes'] / 1e6:.1f} MB moved",
            f"  {'gap':<10} {'streams':>8} {'p50 ms':>8} {'p99 ms':>8} {'longest':>8}",
        ]
        for how, g in f["gaps"].items():
            lines.append(f"  {how:<10} {g['count']:>8} {1e3 * g['p50_s']:>8.0f} {1e3 * g['p99_s']:>8.0f} {1e3 * g['longest_s']:>8.0f}")
        lines += [f"  DIFFERS: {what}" for what in f["differences"][:10]]
    if "plain" in found:
        f = found["plain"]
        share = f["lost"] / max(f["streams"], 1)
        lines.append(
            f"plain Ray Serve, {f['strikes']} strikes: {f['lost']} of {f['streams']} streams lost ({share:.0%}); {f['hit']} were hit"
        )
    return "\n".join(lines)


def broken_promises(found: Mapping[str, Any]) -> list[str]:
    """What did not hold, in words."""
    broken = []
    for part in ("kv", "recompute"):
        if part not in found:
            continue
        f = found[part]
        if f["complete"] != f["streams"]:
            broken.append(f"{part}: {f['streams'] - f['complete']} streams did not end")
        if f["differences"]:
            broken.append(f"{part}: {len(f['differences'])} streams differ from the undisturbed run")
        if f["fewest_hit"] < FEWEST:
            broken.append(f"{part}: a strike hit only {f['fewest_hit']} streams")
        if part == "kv" and f["hits"].get("0"):
            broken.append(f"{part}: {f['hits']['0']} streams were never hit")
        if part == "kv" and "kv" not in f["gaps"]:
            broken.append(f"{part}: no stream moved with its KV")
        if (f["most_computed_after_kv"] or 0) > BLOCK:
            broken.append(f"{part}: {f['most_computed_after_kv']} tokens were computed again after a move with KV")
    return broken


def plot(ours: Mapping[str, Outcome], file: Path) -> None:
    """The pauses of streams, by how they went on: cumulative shares."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    gaps: dict[str, list[float]] = {}
    for outcome in ours.values():
        for how, found in outcome.gaps().items():
            gaps[how] = sorted(gaps.get(how, []) + found)
    for how, found in sorted(gaps.items()):
        axes.step([1e3 * gap for gap in found], np.arange(1, len(found) + 1) / len(found), where="post", label=f"{how} ({len(found)})")
    axes.set(xscale="log", xlabel="pause of a stream whose machine was taken, ms", ylabel="share of streams", ylim=(0, 1))
    axes.grid(alpha=0.3)
    if gaps:
        axes.legend(loc="lower right")
    figure.savefig(file, dpi=120)
