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
"""Rows of reason ("" for kept), kind, documents, num_bytes and samples, as `write_bundle` returns them."""

_SAMPLE_COLUMNS = ("reason", "source", "duplicate of", "similarity", "beginning")
_AUDIT_COLUMNS = ("dropped", "kept", "similarity", "source of the dropped")
_STEP_COLUMNS = ("step", "seconds", "MB/s")
_SAMPLES_PER_REASON = 2
_AUDITED = 20


def balance(documents_in: int, rows: Counted) -> dict[str, float]:
    """The manifest's counts; documents_in = kept + the dropped, or it is our mistake.

    >>> balance(3, [{"reason": "", "documents": 2}, {"reason": "duplicate.near", "documents": 1}])
    {'documents_in': 3, 'kept': 2, 'dropped.duplicate.near': 1}
    """
    by_reason = _by_reason(rows)
    kept = by_reason.pop("", 0)
    assert documents_in == kept + by_reason.total(), f"{documents_in} documents in, {kept} kept, {dict(by_reason)} dropped"
    return {"documents_in": documents_in, "kept": kept, **{f"dropped.{reason}": n for reason, n in sorted(by_reason.items())}}


def figures(rows: Counted, metrics: Mapping[str, Any], similarities: Sequence[int], threshold: float) -> dict[str, Figure]:
    """Dropped by reason, kept by kind, how alike the near-duplicates are and who they are, seconds by step, samples of the dropped.

    `similarities` counts the near-duplicates in equal bins from the threshold to 1.
    """
    by_reason = _by_reason(rows)
    by_reason.pop("", None)
    kinds: Counter[str] = Counter()
    for row in rows:
        if not row["reason"]:
            kinds[row["kind"]] += row["documents"]
    examples = sorted((s for row in rows for s in row["samples"]), key=lambda s: (s["reason"], s["id"]))
    edges = [threshold + (1.0 - threshold) * place / len(similarities) for place in range(len(similarities))]
    alike = {f"{edge:.3f}": number for edge, number in zip(edges, similarities, strict=True)}
    return {
        "dropped": figure.bars("Documents dropped, by reason", "documents", {"dropped": dict(by_reason.most_common())}),
        "kept": figure.bars("Documents kept, by kind", "documents", {"kept": dict(sorted(kinds.items()))}),
        "similarities": figure.bars("Near-duplicates, by similarity with the kept one", "documents", {"dropped": alike}, ordered=True),
        "audit": figure.table("Near-duplicates and what they repeat", _AUDIT_COLUMNS, _audit(examples)),
        "steps": figure.table("Where the time goes", _STEP_COLUMNS, _steps(metrics)),
        "samples": figure.table("Samples of what was dropped", _SAMPLE_COLUMNS, _samples(examples)),
    }


def _audit(examples: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    near = [s for s in examples if s["reason"] == "duplicate.near"][:_AUDITED]
    return [(s["id"], s["duplicate_of"], f"{s['similarity']:.3f}", s["source"]) for s in near]


def _steps(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Each step of the tasks that read, with its speed on one core; then the wall time of each part."""
    megabytes = metrics["bytes_in"] / 1e6
    tasks = [(name, f"{s:.2f}", f"{megabytes / max(s, 1e-9):.1f}") for name, s in metrics["task_seconds"].items()]
    return tasks + [(f"all of: {name}", f"{s:.2f}", f"{megabytes / max(s, 1e-9):.1f}") for name, s in metrics["seconds"].items()]


def _samples(examples: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    shown: Counter[str] = Counter()
    table: list[tuple[str, ...]] = []
    for sample in examples:
        shown[sample["reason"]] += 1
        if shown[sample["reason"]] <= _SAMPLES_PER_REASON:
            alike = "" if sample["similarity"] is None else f"{sample['similarity']:.3f}"
            table.append((sample["reason"], sample["source"], sample["duplicate_of"] or "", alike, sample["excerpt"] or ""))
    return table


def headline(counts: Mapping[str, float], kept_bytes: int, num_earlier: int = 0) -> str:
    """One line for the journey's table.

    >>> headline({"documents_in": 4001, "kept": 3120}, 31_200_000)
    '3,120 of 4,001 documents kept (78 %), 31.2 MB'
    """
    share = counts["kept"] / counts["documents_in"]
    told = f"{counts['kept']:,} of {counts['documents_in']:,} documents kept ({share:.0%}), {kept_bytes / 1e6:.1f} MB".replace("%)", " %)")
    return told + (f", new beside {num_earlier} earlier {'corpus' if num_earlier == 1 else 'corpora'}" if num_earlier else "")


def nothing_left(reasons: Mapping[str, int], unreadable: Sequence[str]) -> str:
    """What to tell the user when the quality rules leave no document: all was unreadable, or everything was dropped.

    >>> nothing_left({"gopher.short_document": 2}, [])
    'input: no document is left of 2 (gopher.short_document 2); choose another --profile or give more text'
    """
    total = sum(reasons.values())
    if not total:
        return "input: holds no document; give an input that holds text"
    if all(reason.startswith(UNREADABLE) for reason in reasons):
        return f"input: none of its {total:,} records can be read; the first: {unreadable[0]}"
    named = ", ".join(f"{reason} {n:,}" for reason, n in Counter(reasons).most_common(4))
    return f"input: no document is left of {total:,} ({named}); choose another --profile or give more text"


def _by_reason(rows: Counted) -> Counter[str]:
    counted: Counter[str] = Counter()
    for row in rows:
        counted[row["reason"]] += row["documents"]
    return counted
