"""The model card of a compressed folder: what it is, what it may differ by, and how that was measured, for people.

Promise: every figure comes from compression.json; nothing is claimed that was not measured. Price: none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["card", "figures_of", "headline", "spelt"]

_FIGURES = (
    ("flips", "tokens that differ (SDT)", "{:.2%}"),
    ("flips_upper", "… at most, with 95 % confidence", "{:.2%}"),
    ("flips_beyond_noise", "… beyond the numeric noise", "{:.2%}"),
    ("fdt_median", "tokens that agree first (FDT), median", "{:.0f}"),
    ("fdt_p10", "… a tenth agree for no longer", "{:.0f}"),
    ("kl_mean", "KL from the original, nats per token", "{:.3g}"),
    ("kl_upper", "… at most, with 95 % confidence", "{:.3g}"),
    ("kl_p99", "… 99th percentile", "{:.3g}"),
    ("perplexity", "perplexity of held-out text", "{:.3f}"),
    ("perplexity_base", "… of the original", "{:.3f}"),
    ("noise_floor", "numeric noise: tokens that the original itself flips", "{:.2%}"),
)


def headline(metrics: Mapping[str, Any], what: str) -> str:
    """One line: the bytes and the divergence."""
    certificate = metrics["certificate"]
    kept = "" if metrics["pass"] is None else ("within " if metrics["pass"] else "NOT within ") + spelt(metrics["budget"]) + ", "
    return (
        f"{what}: {metrics['bytes'] / metrics['bytes_base']:.2f} of the bytes, {kept}SDT {certificate['flips']:.2%} "
        f"(noise {certificate['noise_floor']:.2%}), FDT median {certificate['fdt_median']} of {certificate['longest']}, "
        f"KL {certificate['kl_mean']:.1g}"
    )


def spelt(budget: Mapping[str, float]) -> str:
    """A budget as it is written on the command line.

    >>> spelt({"flips": 0.02, "kl": 0.01})
    'flips=0.02, kl=0.01'
    """
    return ", ".join(f"{name}={bound:g}" for name, bound in budget.items())


def figures_of(certificate: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, figure, 95 % interval or nothing) of each figure, in words."""
    longest = certificate["longest"]

    def spelt_out(name: str, form: str, figure: float) -> str:
        return ("≥ " if name.startswith("fdt") and figure >= longest else "") + form.format(figure)  # censored there: they go on agreeing

    rows = []
    for name, words, form in _FIGURES:
        between = " to ".join(spelt_out(name, form, end) for end in certificate["intervals"].get(name, ()))
        rows.append((words, spelt_out(name, form, certificate[name]), between))
    return rows


def card(model: str, report: Mapping[str, Any], plan: Sequence[Mapping[str, Any]]) -> str:
    """README.md of the folder; `report` is compression.json, `plan` its rows."""
    certificate = report["certificate"]
    share = report["bytes"] / report["bytes_base"]
    lines = ["---", "tags: [compressed-tensors, sterna]", "---", "", f"# {model}, compressed", ""]
    lines += [f"{report['bytes']:,} bytes of weights, {share:.2f} of the original's {report['bytes_base']:,}. {_verdict(report)}", ""]
    lines += [
        f"| on {certificate['num_prompts']} held-out prompts, {certificate['num_tokens']:,} tokens | | 95 % interval |",
        "|---|---|---|",
    ]
    lines += [f"| {words} | {value} | {between} |" for words, value, between in figures_of(certificate)]
    lines += ["", "## What became of the matrices", "", "| option | matrices | bytes before | bytes after | |", "|---|---|---|---|---|"]
    lines += [_row(option, plan) for option, _ in Counter(row["option"] for row in plan).most_common()]
    lines += [
        "",
        f"Read by {' and '.join(report['readers'])}. compression.json has every matrix with its reason.",
        "",
        "## How this was measured",
        "",
        _METHOD,
        "",
    ]
    return "\n".join(lines)


def _verdict(report: Mapping[str, Any]) -> str:
    if report["pass"] is None:
        return "There was no budget to keep to."
    verb = "It keeps to" if report["pass"] else "**It does not keep to**"
    return f"{verb} the budget {spelt(report['budget'])}."


def _row(option: str, plan: Sequence[Mapping[str, Any]]) -> str:
    rows = [row for row in plan if row["option"] == option]
    before, after = (sum(row[name] for row in rows) for name in ("bytes_before", "bytes_after"))
    note = "" if all(row["has_kernel"] for row in rows) else "smaller on disk only: no kernel computes with it as stored"
    return f"| {option} | {len(rows)} | {before:,} | {after:,} | {note} |"


_METHOD = """The original completed each prompt greedily. This model read the same texts in one pass, in float32: a token *differs* when
this model would have written another one there. The first such token is where free greedy decoding of the two parts, too. The
bound holds for prompts of the same kind as the held-out ones, which neither calibration nor search saw; another kind of text may
differ more."""
