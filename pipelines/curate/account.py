"""What curation has to show: counts that add up, seconds, and the figures of the report.

Promise: `balance` fails unless every document that was read is either kept or dropped with a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cluster import figure
from cluster.figure import Figure
from pipelines.curate.document import UNREADABLE

__all__ = ["balance", "figures", "headline", "nothing_left"]

Counted = Sequence[Mapping[str, Any]]
"""Rows of reason ("" for kept), kind, documents, num_bytes and samples, as `steps.write` returns them."""

_SAMPLE_COLUMNS = ("reason", "source", "duplicate of", "similarity", "beginning")
_SAMPLES_PER_REASON = 2


def balance(documents_in: int, rows: Counted) -> dict[str, float]:
    """The manifest's counts; documents_in = kept + the dropped, or it is our mistake.

    >>> balance(3, [{"reason": "", "documents": 2}, {"reason": "duplicate.near", "documents": 1}])
    {'documents_in': 3, 'kept': 2, 'dropped.duplicate.near': 1}
    """
    by_reason = _by_reason(rows)
    kept = by_reason.pop("", 0)
    assert documents_in == kept + by_reason.total(), f"{documents_in} documents in, {kept} kept, {dict(by_reason)} dropped"
    return {"documents_in": documents_in, "kept": kept, **{f"dropped.{reason}": n for reason, n in sorted(by_reason.items())}}


def figures(rows: Counted) -> dict[str, Figure]:
    """Dropped by reason, kept by kind, and samples of what was dropped."""
    by_reason = _by_reason(rows)
    by_reason.pop("", None)
    kinds: Counter[str] = Counter()
    for row in rows:
        if not row["reason"]:
            kinds[row["kind"]] += row["documents"]
    examples = sorted((s for row in rows for s in row["samples"]), key=lambda s: (s["reason"], s["id"]))
    shown: Counter[str] = Counter()
    table = []
    for sample in examples:
        shown[sample["reason"]] += 1
        if shown[sample["reason"]] <= _SAMPLES_PER_REASON:
            alike = "" if sample["similarity"] is None else f"{sample['similarity']:.3f}"
            table.append((sample["reason"], sample["source"], sample["duplicate_of"] or "", alike, sample["excerpt"] or ""))
    return {
        "dropped": figure.bars("Documents dropped, by reason", "documents", {"dropped": dict(by_reason.most_common())}),
        "kept": figure.bars("Documents kept, by kind", "documents", {"kept": dict(sorted(kinds.items()))}),
        "samples": figure.table("Samples of what was dropped", _SAMPLE_COLUMNS, table),
    }


def headline(counts: Mapping[str, float], kept_bytes: int) -> str:
    """One line for the journey's table.

    >>> headline({"documents_in": 4001, "kept": 3120}, 31_200_000)
    '3,120 of 4,001 documents kept (78 %), 31.2 MB'
    """
    share = counts["kept"] / counts["documents_in"]
    return f"{counts['kept']:,} of {counts['documents_in']:,} documents kept ({share:.0%}), {kept_bytes / 1e6:.1f} MB".replace("%)", " %)")


def nothing_left(reasons: Sequence[str], unreadable: Sequence[str]) -> str:
    """What to tell the user when the quality rules leave no document: all was unreadable, or everything was dropped.

    >>> nothing_left(["gopher.short_document"] * 2, [])
    'input: no document is left of 2 (gopher.short_document 2); choose another --profile or give more text'
    """
    if not reasons:
        return "input: holds no document; give an input that holds text"
    if all(reason.startswith(UNREADABLE) for reason in reasons):
        return f"input: none of its {len(reasons):,} records can be read; the first: {unreadable[0]}"
    named = ", ".join(f"{reason} {n:,}" for reason, n in Counter(reasons).most_common(4))
    return f"input: no document is left of {len(reasons):,} ({named}); choose another --profile or give more text"


def _by_reason(rows: Counted) -> Counter[str]:
    counted: Counter[str] = Counter()
    for row in rows:
        counted[row["reason"]] += row["documents"]
    return counted
