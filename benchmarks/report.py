"""The engine comparison's figures as one table and a plot. Pure but for writing the picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.intervals import ratio_of_rounds

__all__ = ["plot", "rows", "table", "targets"]

OURS = "sterna"
TARGETS = {("vllm", 1): 1.0, ("transformers", 1): 1.3, ("vllm", 8): 1.1, ("vllm", 16): 1.1}
TARGETS |= {("transformers", 8): 2.5, ("transformers", 16): 2.5}
Row = dict[str, Any]


def rows(result: dict[str, Any]) -> list[Row]:
    """One row per batch size and system: medians over rounds; ours ÷ theirs with its interval, and our best round ÷ their best."""
    rounds, found = result["rounds"], []
    for batch in result["plan"]["batches"]:
        for name in rounds[0]["figures"]:
            each = [r["figures"][name][str(batch)] for r in rounds if name in r["figures"]]
            both = [r["figures"] for r in rounds if name in r["figures"] and OURS in r["figures"]]
            ours = [b[OURS][str(batch)]["tokens_per_s"] for b in both]
            theirs = [b[name][str(batch)]["tokens_per_s"] for b in both]
            row: Row = {"model": result["model"], "batch": batch, "system": name}
            row |= {key: statistics.median(e[key] for e in each) for key in each[0]}
            row["ratio"] = ratio_of_rounds(ours, theirs) if ours and name != OURS else None
            row["best"] = max(ours) / max(theirs) if ours and name != OURS else None
            row["floor_share"] = statistics.median(_floor_share(result, r, name, batch) for r in rounds if name in r["figures"])
            found.append(row | result["systems"][name])
    return found


def _floor_share(result: dict[str, Any], one: dict[str, Any], name: str, batch: int) -> float:
    """Time to read the weights once ÷ time between tokens."""
    floor_s = result["systems"][name]["step_bytes"] / max(one["bandwidth_here"], one["bandwidth_ram"])
    return floor_s / one["figures"][name][str(batch)]["gap_p50_s"]


def targets(result: dict[str, Any]) -> list[str]:
    """Each of the project's own targets that these figures can judge, and whether it is met."""
    told = []
    for row in rows(result):
        wanted = TARGETS.get((row["system"], row["batch"]))
        if wanted and row["ratio"]:
            told.append(_told(f"{row['model']}, batch {row['batch']}: ours ÷ {row['system']}", row["ratio"], wanted))
    for name, wanted in (("sterna int8", 1.7), ("sterna int4", 2.5)):
        row = next((r for r in rows(result) if r["system"] == name and r["batch"] == 1), None)
        if row and row["ratio"] and "1b" in row["model"]:
            speeds = [[r["figures"][n]["1"]["tokens_per_s"] for r in result["rounds"]] for n in (name, OURS)]
            told.append(_told(f"{row['model']}, batch 1: {name} ÷ bf16", ratio_of_rounds(*speeds), wanted))
    return told


def _told(what: str, ratio: Any, wanted: float) -> str:
    verdict = "met" if ratio.value >= wanted else "MISSED"
    return f"{verdict:<6} {what} {ratio}, wanted {wanted}"


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    rounds = result["rounds"]
    ram, here = (statistics.median(r[k] for r in rounds) / 1e9 for k in ("bandwidth_ram", "bandwidth_here"))
    lines = [
        f"{result['model']}: {result['step_bytes'] / 1e6:,.0f} MB of bf16 weights a step; this machine reads RAM at {ram:.1f} GB/s, "
        f"a buffer of the model's size at {here:.1f} GB/s; {len(rounds)} rounds, {result['plan']['threads']} threads",
        f"{'batch':>5}  {'system':<13} {'tokens/s':>9}  {'ours ÷ it':<21} {'best':>5} {'TTFT ms':>8} {'gap p50':>8} {'p99 ms':>7} "
        f"{'of floor':>8} {'peak MB':>8} {'cold s':>7}",
    ]
    for r in rows(result):
        cold = f"{r['cold_start_s']:7.1f}" if r.get("cold_start_s") else f"{'':>7}"
        best = f"{r['best']:5.2f}" if r["best"] else f"{'':>5}"
        lines.append(
            f"{r['batch']:>5}  {r['system']:<13} {r['tokens_per_s']:>9,.1f}  {r['ratio'] or ''!s:<21} {best} {r['ttft_p50_s'] * 1e3:>8.1f} "
            f"{r['gap_p50_s'] * 1e3:>8.2f} {r['gap_p99_s'] * 1e3:>7.2f} {r['floor_share']:>8.0%} {r['peak_rss'] / 1e6:>8,.0f} {cold}"
        )
    same = {name: statistics.median(r["agreement"][name] for r in rounds) for name in rounds[0]["agreement"] if name != OURS}
    told = ", ".join(f"{name} {share:.0%}" for name, share in same.items())
    lines.append(f"       answers equal ours up to this share of their length: {told}" if told else "       no peer was measured")
    lines += [f"       {reason}" for reason in result["missing"].values()]
    lines += _load_table(result)
    return "\n".join([*lines, *targets(result)])


def _load_table(result: dict[str, Any]) -> list[str]:
    load = result.get("load")
    if not load:
        return []
    lines = [
        f"arrivals as in the Azure trace, {load['requests']} requests at {load['rate']:.2f}/s (70 % of what ours can do):",
        f"       {'system':<13} {'tokens/s':>9}  {'TTFT p50 ms':>11} {'p99 ms':>9} {'gap p50 ms':>10} {'p99 ms':>8}",
    ]
    for name, each in _by_system(load["rounds"]).items():
        middle = {k: statistics.median(e[k] for e in each) for k in each[0]}
        lines.append(
            f"       {name:<13} {middle['tokens_per_s']:>9,.1f}  {middle['ttft_p50_s'] * 1e3:>11.1f} {middle['ttft_p99_s'] * 1e3:>9.1f} "
            f"{middle['gap_p50_s'] * 1e3:>10.2f} {middle['gap_p99_s'] * 1e3:>8.2f}"
        )
    return lines


def _by_system(rounds: list[dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    names = dict.fromkeys(name for figures in rounds for name, row in figures.items() if "not_there" not in row)
    return {n: [figures[n] for figures in rounds if n in figures and "not_there" not in figures[n]] for n in names}


def plot(results: list[dict[str, Any]], file: Path) -> None:
    """Tokens per second by batch size, one panel per model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(results), 3.4), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
        by_system: dict[str, list[tuple[int, float]]] = {}
        for row in rows(result):
            by_system.setdefault(row["system"], []).append((row["batch"], row["tokens_per_s"]))
        for name, points in by_system.items():
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, marker="o", label=name, linewidth=2.5 if name == OURS else 1.2)
        axes.set(title=result["model"], xlabel="batch", ylabel="tokens/s", xscale="log", yscale="log")
        axes.set_xticks(result["plan"]["batches"], [str(b) for b in result["plan"]["batches"]])
    axes.legend(fontsize=7)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
