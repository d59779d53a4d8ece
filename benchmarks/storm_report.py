"""What a storm did, as figures, tables, a plot and a verdict: all from the waves' records, which are plain data. Pure but for the plot.

A stream counts as hit by a strike if the journal says that it left the struck machine in the middle of generation, moved or lost, at the
strike or after it: what a strike aimed at and what ended there by itself in time is not a hit. Gaps are the journal's: from a stream's last
token on one machine to its first on the next, whatever lies between; one that was bounced on its way is counted as what it says, a bounce.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.storm_fleet import FEWEST

__all__ = ["broken_promises", "figures", "gaps", "hits", "markdown", "plot", "table"]

BLOCK = 16
"""Tokens of a KV block: the most that a stream whose KV moved may compute again."""
PARTS = {"kv": "KV moves where it pays", "recompute": "KV never moves"}
WAYS = {"kv": "notice, its KV moved", "recompute": "notice, computed again", "crash": "no notice", "bounce": "bounced on its way"}
Record = Mapping[str, Any]
"""A wave, as benchmarks/storm_waves.record makes it."""


def struck(wave: Record, strike: Record) -> set[str]:
    """Streams that left a struck machine in the middle of generation."""
    return {
        stay["stream"]
        for stay in wave["stays"]
        if stay["node_id"] == strike["node_id"]
        and stay["end"] in ("moved", "lost")
        and stay["num_tokens"]
        and stay["end_s"] >= strike["at_s"]
    }


def hits(wave: Record) -> Counter[str]:
    """Strikes by stream; those never hit too."""
    found = Counter({stream["stream"]: 0 for stream in wave["streams"]})
    for strike in wave["strikes"]:
        found.update(struck(wave, strike))
    return found


def computed_again(stay: Record) -> int:
    """Tokens; where the source did not say what it had computed, it counts as if it had computed everything."""
    again: int | None = stay.get("num_computed_again")
    return int(stay["num_computed"]) if again is None else again


def gaps(waves: Sequence[Record]) -> dict[str, list[float]]:
    """Seconds without a token, by how the stream went on; sorted."""
    found: dict[str, list[float]] = {}
    for wave in waves:
        for stay in wave["stays"]:
            if stay["gap_s"] is not None and stay["how"] in WAYS:
                found.setdefault(stay["how"], []).append(stay["gap_s"])
    return {how: sorted(found[how]) for how in WAYS if how in found}


def figures(waves: Sequence[Record]) -> dict[str, Any]:
    """All of it as plain data."""
    streams = [stream for wave in waves for stream in wave["streams"]]
    strikes = [(wave, strike) for wave in waves for strike in wave["strikes"]]
    counted = [(wave, hits(wave)) for wave in waves]
    stays = [stay for wave in waves for stay in wave["stays"]]
    again = [computed_again(stay) for stay in stays if stay["how"] == "kv" and stay["num_computed"] is not None]
    whys = [stream["why"] for stream in streams if stream["difference"]]
    nodes = [{strike["node_id"] for strike in wave["strikes"]} for wave in waves]
    return {
        "num_waves": len(waves),
        "streams": len(streams),
        "complete": sum(stream["complete"] for stream in streams),
        "tokens": sum(stream["num_tokens"] for stream in streams),
        "tokens_missing": sum(max(0, stream["num_wanted"] - stream["num_tokens"]) for stream in streams),
        "tokens_surplus": sum(max(0, stream["num_tokens"] - stream["num_wanted"]) for stream in streams),
        "differences": [
            f"wave {w + 1}, {stream['kind']} {stream['question']}, choice {stream['choice']}: {stream['difference']}{_why(stream['why'])}"
            for w, wave in enumerate(waves) for stream in wave["streams"] if stream["difference"]
        ],
        "unexplained": sum(not (why or {}).get("explained") for why in whys),
        "largest_error": max((why["error"] for why in whys if why and "error" in why), default=None),
        "least_noise": min((why["noise"] for why in whys if why and "noise" in why), default=None),
        "strikes": len(strikes),
        "with_notice": sum(strike["notice_s"] is not None for _, strike in strikes),
        "fewest_hit": min((len(struck(wave, strike)) for wave, strike in strikes), default=0),
        "hits": _histogram([count for _, counts in counted for count in counts.values()]),
        "hits_by_kind": {
            kind: _histogram([counts[s["stream"]] for wave, counts in counted for s in wave["streams"] if s["kind"] == kind])
            for kind in sorted({stream["kind"] for stream in streams})
        },
        "unprovoked": sum(
            stay["end"] in ("moved", "lost") and stay["node_id"] not in there
            for wave, there in zip(waves, nodes, strict=True) for stay in wave["stays"]
        ),
        "most_computed_after_kv": max(again, default=None),
        "kv_bytes": sum(stay["num_bytes"] for stay in stays),
        "gaps": {how: _spread(seconds) for how, seconds in gaps(waves).items()},
        "longest_silence_s": max((stream["silence_s"] for stream in streams), default=0.0),
        "reasons": dict(Counter(stay["why"].split(":")[0] for stay in stays if stay["how"] == "recompute")),
    }  # fmt: skip


def _why(why: Mapping[str, Any] | None) -> str:
    if not why or "noise" not in why:
        return ""
    apart = f"draws {why['error']:.1e} of a logit apart" if "error" in why else f"log probabilities {why['logprobs_apart']:.1e} apart"
    return f" ({apart}, rounding {why['noise']:.1e}: {'explained' if why['explained'] else 'NOT explained'})"


def _histogram(counts: Sequence[int]) -> dict[str, int]:
    return {str(times): count for times, count in sorted(Counter(counts).items())}  # as JSON has it


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "count": len(seconds), "p50_s": statistics.median(seconds), "p99_s": float(np.percentile(seconds, 99)), "longest_s": seconds[-1],
    }  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """For people."""
    lines = []
    for part, title in PARTS.items():
        if part not in found:
            continue
        f = found[part]
        lines += [
            f"{title}: {f['strikes']} strikes ({f['with_notice']} with notice) on {f['num_waves']} waves of streams, "
            f"at least {f['fewest_hit']} streams hit by each",
            f"  {f['complete']} of {f['streams']} streams complete, {f['tokens']:,} tokens, {f['tokens_missing']} missing, "
            f"{f['tokens_surplus']} too many; {len(f['differences'])} streams unlike undisturbed, {f['unexplained']} unexplained",
            f"  strikes by stream: {_told(f['hits'])}",
            *(f"    {kind:<14} {_told(histogram)}" for kind, histogram in f["hits_by_kind"].items()),
            f"  computed again after a move with KV: {_most(f)}; {f['kv_bytes'] / 1e6:.1f} MB moved; "
            f"went on elsewhere unprovoked: {f['unprovoked']}; longest silence at a client {f['longest_silence_s']:.1f} s",
            f"  {'gap':<24} {'streams':>8} {'p50 ms':>8} {'p99 ms':>8} {'longest':>8}",
            *(
                f"  {WAYS[how]:<24} {g['count']:>8} {1e3 * g['p50_s']:>8.0f} {1e3 * g['p99_s']:>8.0f} {1e3 * g['longest_s']:>8.0f}"
                for how, g in f["gaps"].items()
            ),
            *(f"  DIFFERS: {what}" for what in f["differences"][:10]),
        ]
    if "plain" in found:
        f = found["plain"]
        lines.append(
            f"plain Ray Serve, {len(f['strikes'])} strikes: {f['lost']} of {f['streams']} streams lost "
            f"({_share(f['lost'], f['streams'])}), {f['complete']} complete, the others went on; "
            f"of {f['hit']} that were hit {f['hit_and_lost']} ({_share(f['hit_and_lost'], f['hit'])}); "
            f"{f['refused']} requests refused besides"
        )
    return "\n".join(lines)


def _told(histogram: Mapping[str, int]) -> str:
    return ", ".join(f"{count} streams {times}x" for times, count in histogram.items())


def _most(f: Mapping[str, Any]) -> str:
    return "no KV moved" if f["most_computed_after_kv"] is None else f"at most {f['most_computed_after_kv']} tokens"


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.0%}"


def markdown(found: Mapping[str, Any]) -> str:
    """The tables for docs/serving.md."""
    ours = {title: found[part] for part, title in PARTS.items() if part in found}
    rows = {
        "strikes (with notice); streams hit by each": [
            f"{f['strikes']} ({f['with_notice']}); {f['fewest_hit']} or more" for f in ours.values()
        ],
        "streams complete": [f"{f['complete']} of {f['streams']}" for f in ours.values()],
        "tokens; missing; too many": [f"{f['tokens']:,}; {f['tokens_missing']}; {f['tokens_surplus']}" for f in ours.values()],
        "streams unlike undisturbed (unexplained)": [f"{len(f['differences'])} ({f['unexplained']})" for f in ours.values()],
        "strikes by stream": [", ".join(f"{times}×: {count}" for times, count in f["hits"].items()) for f in ours.values()],
        "computed again after a move with KV": [_most(f) for f in ours.values()],
    }
    for how, told in WAYS.items():
        if any(how in f["gaps"] for f in ours.values()):
            rows[f"gap, {told}: p50 / p99 ms (streams)"] = [_gap(f["gaps"].get(how)) for f in ours.values()]
    if "plain" in found:
        f = found["plain"]
        ours = {**ours, "plain Ray Serve": f}
        last = {
            "strikes (with notice); streams hit by each": f"{len(f['strikes'])} ({sum(s['notice_s'] is not None for s in f['strikes'])})",
            "streams complete": f"{f['complete']} of {f['streams']}; {_share(f['lost'], f['streams'])} lost, "
            f"of those hit {_share(f['hit_and_lost'], f['hit'])}",
        }
        rows = {name: [*cells, last.get(name, "")] for name, cells in rows.items()}
    lines = [f"| | {' | '.join(ours)} |", "|---" * (len(ours) + 1) + "|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())])


def _gap(spread: Mapping[str, float] | None) -> str:
    return "" if spread is None else f"{1e3 * spread['p50_s']:.0f} / {1e3 * spread['p99_s']:.0f} ({spread['count']})"


def broken_promises(found: Mapping[str, Any], *, num_strikes: int, all_hit: bool = True) -> list[str]:
    """What did not hold, in words. `num_strikes`: of the part in which KV moves; `all_hit`: whether every stream was to be hit."""
    broken = ["the code changed while the storm ran, and machines that came since ran the new one"] if found.get("code_changed") else []
    for part in PARTS:
        if part not in found:
            continue
        f = found[part]
        checks = {
            f"{f['streams'] - f['complete']} streams did not end": f["complete"] < f["streams"] or not f["streams"],
            f"{f['unexplained']} streams differ from the undisturbed run": f["unexplained"],
            f"a strike hit only {f['fewest_hit']} streams": f["fewest_hit"] < FEWEST,
            f"{f['hits'].get('0')} streams were never hit": all_hit and f["hits"].get("0"),
            f"{f['with_notice']} of {f['strikes']} strikes came with notice, not half": abs(2 * f["with_notice"] - f["strikes"]) > 1,
            f"only {f['strikes']} strikes came": part == "kv" and f["strikes"] < num_strikes,
            "no stream moved with its KV": part == "kv" and "kv" not in f["gaps"],
            "no stream went on after a crash": "crash" not in f["gaps"],
            f"{f['most_computed_after_kv']} tokens were computed again after a move with KV": (f["most_computed_after_kv"] or 0) > BLOCK,
        }
        broken += [f"{part}: {what}" for what, is_broken in checks.items() if is_broken]
    return broken


def plot(found: Mapping[str, Any], file: Path) -> None:
    """The pauses of streams by how they went on, as cumulative shares, and how often streams were hit."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    ours = {part: found[part] for part in PARTS if part in found}
    for how, seconds in gaps([wave for f in ours.values() for wave in f["waves"]]).items():
        shares = np.arange(1, len(seconds) + 1) / len(seconds)
        left.step([1e3 * s for s in seconds], shares, where="post", label=f"{WAYS[how]} ({len(seconds)})")
    left.set(xscale="log", xlabel="pause of a stream whose machine was taken, ms", ylabel="share of streams", ylim=(0, 1.02))
    left.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    left.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.grid(alpha=0.3)
    if left.lines:
        left.legend(loc="upper left")
    for index, (part, f) in enumerate(ours.items()):
        times = [int(count) + 0.4 * index for count in f["hits"]]
        right.bar(times, list(f["hits"].values()), width=0.4, align="edge", label=f"{PARTS[part]} ({f['strikes']} strikes)")
    most = max((int(times) for f in ours.values() for times in f["hits"]), default=0)
    right.set(xlabel="strikes that hit a stream", ylabel="streams", xticks=[n + 0.2 * len(ours) for n in range(most + 1)])
    right.set_xticklabels([str(n) for n in range(most + 1)])
    right.margins(y=0.25)  # room for the legend
    right.legend(loc="upper right")
    figure.savefig(file, dpi=120)
