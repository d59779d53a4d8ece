"""The compression comparison's figures as tables, and what was asked of them. Pure."""

from __future__ import annotations

from typing import Any

__all__ = ["told"]

Row = dict[str, Any]
_HEAD = "| {} | bytes | of bf16 | flips | upper | KL mean | KL p99 | FDT median | FDT p10 | perplexity |\n" + "|---" * 10 + "|"


def told(figures: Row) -> str:
    """The tables and the verdicts, as text (Markdown)."""
    parts = (_budgets, _kernels, _equal, _greedy, _promise, _shapes, _eight, _cost)
    return "\n\n".join(text for part in parts if (text := part(figures)))


def _line(name: str, row: Row) -> str:
    return (
        f"| {name} | {row['bytes'] / 1e6:.2f} MB | {row['share']:.3f} | {row['flips']:.2%} | {row['flips_upper']:.2%} | {row['kl']:.1e} "
        f"| {row['kl_p99']:.1e} | {row['fdt_median']} | {row['fdt_p10']} | {row['perplexity']:.3f} |"
    )


def _budgets(figures: Row) -> str:
    rows = figures.get("budgets", {})
    seconds = [row["seconds"]["offer"] + row["seconds"]["search"] for row in rows.values()]
    cost = f"{min(seconds):.0f} to {max(seconds):.0f} s on one core, wanted at most 300" if rows else ""
    return _within("ours, by budget", rows) + (f"\n{_met(max(seconds) <= 300)} the search takes {cost}" if rows else "")


def _kernels(figures: Row) -> str:
    return _within("ours with kernels, by budget", figures.get("kernels", {}))


def _within(title: str, rows: Row) -> str:
    """What a search gave at each budget, and whether bytes fall as budgets grow."""
    lines = [_line(f"flips ≤ {float(budget):.1%}", row) for budget, row in rows.items()]
    kept = [
        f"{_met(row['flips_upper'] <= float(budget))} certificate of {float(budget):.1%}: {row['flips_upper']:.2%}"
        for budget, row in rows.items()
    ]
    sizes = [rows[budget]["bytes"] for budget in sorted(rows, key=float)]
    falling = f"{_met(sizes == sorted(sizes, reverse=True))} looser budgets give no larger plans"
    return "\n".join([_HEAD.format(title), *lines, *kept, falling]) if rows else ""


def _equal(figures: Row) -> str:
    rows, lines = figures.get("equal", {}), []
    for name, row in rows.items():
        if not name.startswith("ours"):
            ours = {kind: rows.get(f"{kind}|{row['bytes']}") for kind in ("ours", "ours with kernels")}
            found = {kind: each for kind, each in ours.items() if each}
            lines += [_line(f"**{name}**", row), *(_line(kind, each) for kind, each in found.items())]
            if found:
                lines[-1] += f" {_met(min(each['flips'] for each in found.values()) <= row['flips']).strip()}"
    return "\n".join([_HEAD.format("at equal bytes"), *lines]) if lines else ""


def _greedy(figures: Row) -> str:
    rows, lines = figures.get("greedy", {}), []
    for name, row in rows.items():
        budget, who = name.split("|")
        lines.append(_line(f"{who}, at the size of {float(budget):.1%}", row))
    verdicts = []
    for budget in dict.fromkeys(name.split("|")[0] for name in rows):
        ours = rows[f"{budget}|ours"]["flips"] if f"{budget}|ours" in rows else None
        best = min((row["flips"], name.split("|")[1]) for name, row in rows.items() if name.startswith(f"{budget}|") and "ours" not in name)
        if ours is not None:
            verdicts.append(
                f"{_met(ours <= best[0])} at the size of {float(budget):.1%}: ours {ours:.2%}, the best other ({best[1]}) {best[0]:.2%}"
            )
    return "\n".join([_HEAD.format("greedy, at equal bytes"), *lines, *verdicts]) if lines else ""


def _promise(figures: Row) -> str:
    rows = list(figures.get("promise", {}).values())
    if not rows:
        return ""
    passed = [row for row in rows if row["pass"]]
    held = sum(row["fresh"]["flips"] <= 0.02 for row in passed)
    boldest, tested = sum(row["boldest"] for row in rows), sum(row["tested"] for row in rows)
    sizes, fresh = sorted(row["bytes"] for row in rows), sorted(row["fresh"]["flips"] for row in rows)
    return (
        f"promise, {len(rows)} draws of calibration, search and held-out prompts, flips ≤ 2 %: {len(passed)} certificates pass, {boldest} "
        f"of them of the boldest plan ({tested / len(rows):.1f} plans tested each)\n"
        f"bytes {sizes[0] / 1e6:.2f} to {sizes[-1] / 1e6:.2f} MB; on fresh prompts {held} of those that passed keep to it: "
        f"{fresh[0]:.2%} to {fresh[-1]:.2%}\n"
        f"{_met(len(passed) >= 0.95 * len(rows))} the held-out certificate passes\n"
        f"{_met(held >= 0.95 * len(passed))} fresh prompts keep to the budget"
    )


def _shapes(figures: Row) -> str:
    rows = figures.get("shapes", {})
    if not rows:
        return ""
    percents = sorted({int(name.split("|")[1]) for name in rows})
    lines = [f"| mean FDT, pruned to | {' | '.join(f'{p} %' for p in percents)} |", "|---|" + "---|" * len(percents)]
    for matrix in dict.fromkeys(name.split("|")[0] for name in rows):
        cells = (rows.get(f"{matrix}|{percent}", {}).get("fdt_mean") for percent in percents)
        lines.append(f"| {matrix} | {' | '.join('' if cell is None else f'{cell:.1f}' for cell in cells)} |")
    return "\n".join(lines)


def _eight(figures: Row) -> str:
    rows = dict(figures.get("eight", {}))
    noise = rows.pop("noise", None)
    if noise is None:
        return ""
    lines = [
        f"8 bits within the noise: bfloat16 flips {noise['flips']:.2%}, a batch {noise['batch_flips']:.2%}, decoding "
        f"{noise['decode_flips']:.2%}; KL {noise['kl_mean']:.1e}",
        "| int8 where it harms least | parameters | flips | KL mean | within the noise of flips | of KL |\n|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        within = (row["flips"] <= noise["floor"], row["kl"] <= noise["kl_mean"])
        said = " | ".join("yes" if each else "no" for each in within)
        lines.append(f"| {name.split('|')[0]} | {row['parameters']:.0%} | {row['flips']:.2%} | {row['kl']:.1e} | {said} |")
    return "\n".join(lines)


def _cost(figures: Row) -> str:
    rows = figures.get("cost", {})
    lines = ["| layers | matrices | joint passes | passes in all | options and gradients | search |", "|---|---|---|---|---|---|"]
    for depth, row in rows.items():
        seconds = f"{row['offer_s']:.1f} s | {row['search_s']:.1f} s"
        lines.append(f"| {depth} | {row['matrices']} | {row['joint_passes']} | {row['passes']:.1f} | {seconds} |")
    return "\n".join(lines) if rows else ""


def _met(held: bool) -> str:
    return "met   " if held else "MISSED"
