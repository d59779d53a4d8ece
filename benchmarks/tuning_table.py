"""The tuning comparison's figures as one table, and what was asked of them. Pure."""

from __future__ import annotations

from typing import Any

__all__ = ["told"]

LORA_WITHIN = 1.03
MERGED_WITHIN = 1e-4
_SERVED = {"full": "as a model", "lora by name": "by name", "adalora": "by name or merged"}
_SERVED |= dict.fromkeys(("lora", "lora, rank 64", "rslora", "dora", "ia3", "bitfit"), "merged")


def told(figures: dict[str, Any]) -> str:
    """The table and the verdicts, as text (Markdown)."""
    methods, speeds = figures.get("methods", {}), figures.get("speed", {})
    lines = [
        "| method | trained share | artifact | answer tokens/s | held-out loss | ÷ full | merged − tuned | served by our engine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    full = methods.get("full", {}).get("after")
    for name, row in methods.items():
        ratio = f"{row['after'] / full:.3f}" if full else ""
        merged = f"{row['merged_difference']:.1e}" if "merged_difference" in row else "cannot be"
        speed = f"{speeds[name]:,.0f}" if name in speeds else ""
        size = f"{row['bytes'] / 1e3:,.0f} kB"
        lines.append(
            f"| {name} | {row['trainable']:.2%} | {size} | {speed} | {row['after']:.3f} | {ratio} | {merged} | {_SERVED.get(name, 'no')} |"
        )
    if methods:
        lines.append(f"\nbefore tuning: {next(iter(methods.values()))['before']:.3f}")
    if found := figures.get("preferences"):
        lines.append(
            f"preferences (LoRA, {found['steps']} steps): held-out loss {found['before']:.3f} → {found['after']:.3f}, "
            f"the right solution preferred {found['right_before']:.0%} → {found['right_after']:.0%}"
        )
    return "\n".join([*lines, *_verdicts(methods)])


def _verdicts(methods: dict[str, Any]) -> list[str]:
    found = []
    for row in ("lora", "lora, rank 64"):
        if row in methods and "full" in methods:
            ratio = methods[row]["after"] / methods["full"]["after"]
            found.append(f"{_met(ratio <= LORA_WITHIN)} {row} ÷ full: {ratio:.3f}, wanted at most {LORA_WITHIN}")
    worst = max((row["merged_difference"] for row in methods.values() if "merged_difference" in row), default=None)
    if worst is not None:
        found.append(
            f"{_met(worst <= MERGED_WITHIN)} merged − tuned, largest of all logits: {worst:.1e}, wanted at most {MERGED_WITHIN:.0e}"
        )
    return found


def _met(held: bool) -> str:
    return "met   " if held else "MISSED"
