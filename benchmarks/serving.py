"""What serving adds to the engine: the figures of `benchmarks.serve` as one table with its verdicts. Pure.

Promise: a ratio, and a difference, is taken within a round, where both sides met the same machine; each target is told as met or missed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.intervals import Interval, interval, percentile, ratio_of_rounds

__all__ = ["OVERLOAD", "cpu_per_token", "first_tokens", "overload_figures", "stream_figures", "table", "targets"]

OVERLOAD = 3.0
"""Requests that come, in multiples of what the engine can bear."""
LEAST_SHARE, MOST_TTFT_S, NUM_STREAMS = 0.9, 0.015, 256
"""The issue's targets: share of the bare engine's throughput, added time to first token, streams held at once."""
Figures = dict[str, Any]


def cpu_per_token(before: dict[str, float], after: dict[str, float], num_tokens: int) -> dict[str, float]:
    """CPU milliseconds a token of each kind of process, from its CPU seconds before and after.

    >>> cpu_per_token({"proxy": 1.0}, {"proxy": 1.5, "raylet": 0.1}, 1000)
    {'proxy': 0.5, 'raylet': 0.1}
    """
    return {name: round((after[name] - before.get(name, 0.0)) / num_tokens * 1e3, 6) for name in after}


def first_tokens(reply: Figures) -> list[float]:
    """Seconds to the first token of every answer that has one."""
    return [answer["times"][0] for answer in reply["answers"] if answer["tokens"]]


def overload_figures(reply: Figures, limit_s: float) -> Figures:
    """What became of the requests of an overload."""
    answers, first = reply["answers"], first_tokens(reply)
    refused = [answer["times"][0] for answer in answers if answer.get("status") == 429]
    return {
        "limit_s": limit_s,
        "requests": len(answers),
        "admitted": len(first),
        "refused": len(refused),
        "failed": len(answers) - len(first) - len(refused),
        "ttft_p50_s": percentile(first, 50),
        "ttft_p99_s": percentile(first, 99),
        "refusal_p99_s": percentile(refused, 99),
        "tokens_per_s": sum(len(answer["tokens"]) for answer in answers) / reply["seconds"],
    }


def stream_figures(reply: Figures, cpu: dict[str, float]) -> Figures:
    """How many streams were live at once, at the fullest moment, and what they cost."""
    spans = [(answer["at"] + answer["times"][0], answer["at"] + answer["times"][-1]) for answer in reply["answers"] if answer["tokens"]]
    changes = sorted([(start, 0, 1) for start, _ in spans] + [(end, 1, -1) for _, end in spans])  # at one time: first who come
    held = most = 0
    for _, _, change in changes:
        held += change
        most = max(most, held)
    gaps = [later - sooner for answer in reply["answers"] for sooner, later in zip(answer["times"], answer["times"][1:], strict=False)]
    complete = sum(len(answer["tokens"]) == answer["asked"] and not answer.get("error") for answer in reply["answers"])
    tokens_per_s = sum(len(answer["tokens"]) for answer in reply["answers"]) / reply["seconds"]
    found = {"held": most, "complete": complete, "tokens_per_s": tokens_per_s, "gap_p50_s": percentile(gaps, 50)}
    return found | {"gap_p99_s": percentile(gaps, 99), "cpu_ms": cpu}


def _ratio(rounds: Sequence[Figures]) -> Interval:
    return ratio_of_rounds([r["served"]["tokens_per_s"] for r in rounds], [r["bare"]["tokens_per_s"] for r in rounds])


def _added(rounds: Sequence[Figures]) -> Interval:
    """The median over rounds of (our median - the bare engine's), in seconds."""
    added = [percentile(r["served"], 50) - percentile(r["bare"], 50) for r in rounds]
    return interval(len(added), lambda i: statistics.median(added[n] for n in i))


def targets(result: Figures) -> list[str]:
    """Each target that these figures can judge."""
    told = []
    if rounds := result.get("throughput"):
        ratio = _ratio(rounds)
        told.append(_told(ratio.value >= LEAST_SHARE, f"throughput at batch 8, served ÷ bare: {ratio}, wanted {LEAST_SHARE}"))
    if rounds := result.get("ttft"):
        added, most = _added(rounds), MOST_TTFT_S * 1e3
        words = f"{added.value * 1e3:.1f} ({added.low * 1e3:.1f} to {added.high * 1e3:.1f}) ms, at most {most:.0f} wanted"
        told.append(_told(added.value <= MOST_TTFT_S, f"time to first token that serving adds, p50: {words}"))
    if overload := result.get("overload"):
        words = f"{overload['ttft_p99_s']:.2f} s, limit {overload['limit_s']:g} s"
        fine = overload["ttft_p99_s"] <= overload["limit_s"] and not overload["failed"]
        told.append(_told(fine, f"p99 time to first token of those let in at {OVERLOAD:g} times the load: {words}"))
    if streams := result.get("streams"):
        fine = min(streams["held"], streams["complete"]) >= NUM_STREAMS
        told.append(_told(fine, f"streams held at once: {streams['held']}, complete {streams['complete']}, wanted {NUM_STREAMS}"))
    return told


def _told(fine: bool, what: str) -> str:
    return f"{'met' if fine else 'MISSED':<6} {what}"


def table(result: Figures) -> str:
    """The figures as text."""
    lines = [f"{result['model']}, {result['threads']} engine threads"]
    for name in ("bare", "served"):
        if rounds := result.get("throughput"):
            middle = {key: statistics.median(r[name][key] for r in rounds) for key in ("tokens_per_s", "ttft_p50_s", "gap_p50_s")}
            cpu = {key: statistics.median(r[name]["cpu_ms"].get(key, 0.0) for r in rounds) for key in rounds[0][name]["cpu_ms"]}
            lines.append(
                f"{name:<7} {middle['tokens_per_s']:7.1f} tokens/s  TTFT {middle['ttft_p50_s'] * 1e3:6.1f} ms  "
                f"gap {middle['gap_p50_s'] * 1e3:5.1f} ms  CPU ms/token: {_cpu(cpu)}"
            )
    if rounds := result.get("ttft"):
        each = {name: statistics.median(percentile(r[name], 50) for r in rounds) * 1e3 for name in ("bare", "served")}
        lines.append(
            f"moderate load ({result['rate']:.2f} requests/s): TTFT p50 {each['bare']:.1f} ms bare, {each['served']:.1f} ms served"
        )
    if o := result.get("overload"):
        lines.append(
            f"overload: {o['requests']} requests, {o['admitted']} let in, {o['refused']} refused (p99 {o['refusal_p99_s'] * 1e3:.0f} ms), "
            f"{o['failed']} failed; TTFT p50 {o['ttft_p50_s']:.2f} s, p99 {o['ttft_p99_s']:.2f} s; {o['tokens_per_s']:.0f} tokens/s"
        )
    if s := result.get("streams"):
        lines.append(
            f"streams: {s['held']} at once, {s['complete']} complete, {s['tokens_per_s']:.0f} tokens/s, "
            f"gap p50 {s['gap_p50_s'] * 1e3:.0f} ms, p99 {s['gap_p99_s'] * 1e3:.0f} ms; CPU ms/token: {_cpu(s['cpu_ms'])}"
        )
    return "\n".join([*lines, *targets(result)])


def _cpu(cpu: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in cpu.items() if value >= 0.005)
