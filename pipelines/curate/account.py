"""What curation has to show: counts that add up, seconds, and the figures of the report.

Promise: `balance` fails unless every document that was read is either kept or dropped with a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cluster import figure
from cluster.figure import Figure
from pipelines.curate.document import EXCERPT_CHARS, UNREADABLE

__all__ = ["balance", "figures", "headline", "nothing_left"]

Counted = Sequence[Mapping[str, Any]]
"""Rows of reason ("" for kept), kind, documents, num_bytes and samples, as `write_bundle` returns them."""

_COUNT_COLUMNS = ("documents", "number", "share", "of these")
_SAMPLE_COLUMNS = ("reason", "source", "repeats", "beginning")
_AUDIT_COLUMNS = ("dropped", "kept", "similarity", "source of the dropped", "its beginning")
_STEP_COLUMNS = ("step", "seconds of one core", "MB/s", "documents/s")
_PART_COLUMNS = ("part of the run", "seconds", "MB/s", "documents/s")
_PARTS = {
    "documents": "the steps above, in parallel, and what the judges learn before",
    "duplicates": "duplicates found",
    "selection": "selected, and put in order",
    "write": "written",
}
_SAMPLES_PER_REASON = 2
_AUDITED = 20
_MOST_BINS = 10
_SHORTEST_S = 0.005  # what took less was not there to be done


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
    """The account as a table, dropped by reason, kept by kind, the audit of near-duplicates, the steps' speed, samples of the dropped.

    `similarities` counts the near-duplicates in equal bins from the threshold to 1.
    """
    by_reason = _by_reason(rows)
    documents_in, _ = by_reason.total(), by_reason.pop("", 0)
    kinds: Counter[str] = Counter()
    for row in rows:
        if not row["reason"]:
            kinds[row["kind"]] += row["documents"]
    examples = sorted((s for row in rows for s in row["samples"]), key=lambda s: (s["reason"], s["id"]))
    found = {
        "dropped": figure.bars("Documents dropped, by reason", "documents", {"dropped": dict(by_reason.most_common())}),
        "kept": figure.bars("Documents kept, by kind", "documents", {"kept": dict(sorted(kinds.items()))}),
        "speed": figure.bars("Seconds of one core, by step", "seconds", {"seconds": dict(metrics["task_seconds"])}, ordered=True),
        "account": figure.table(_sum(documents_in, by_reason), _COUNT_COLUMNS, _account(documents_in, by_reason)),
        "samples": figure.table("Samples of what was dropped", _SAMPLE_COLUMNS, _samples(examples, by_reason)),
        "steps": figure.table("Speed of the steps", _STEP_COLUMNS, _steps(metrics, documents_in)),
        "parts": figure.table("Speed of the whole, by the clock", _PART_COLUMNS, _parts(metrics, documents_in)),
    }
    return found | (_near_figures(by_reason["duplicate.near"], examples, similarities, threshold) if sum(similarities) else {})


def _sum(documents_in: int, dropped: Counter[str]) -> str:
    kept = documents_in - dropped.total()
    return f"Every document once: {documents_in:,} read = {kept:,} kept + {dropped.total():,} dropped"


def _account(documents_in: int, dropped: Counter[str]) -> list[tuple[str, int, str, str]]:
    """What was read; what was kept and dropped, by the family of the reason; and their sum."""
    families: dict[str, Counter[str]] = {}
    for reason, number in dropped.items():
        family, _, name = reason.partition(".")
        families.setdefault(family, Counter())[name or family] = number
    kept = documents_in - dropped.total()
    out = [(f"dropped: {family.replace('_', ' ')}", each.total(), _told(each)) for family, each in sorted(families.items())]
    lines = [("read", documents_in, ""), ("kept", kept, ""), *out, ("kept and dropped", kept + dropped.total(), "")]
    return [(name, number, f"{number / max(documents_in, 1):.1%}".replace("%", " %"), told) for name, number, told in lines]


def _told(numbers: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in numbers.most_common())


def _near_figures(number: int, examples: Sequence[Mapping[str, Any]], similarities: Sequence[int], threshold: float) -> dict[str, Figure]:
    """How alike the near-duplicates are, in ten bins at most, and who they are."""
    joined = -(-len(similarities) // _MOST_BINS)
    edges = [threshold + (1.0 - threshold) * place / len(similarities) for place in range(0, len(similarities), joined)]
    alike: Counter[str] = Counter()  # near a threshold of 1 several bins have one name
    for place, edge in enumerate(edges):
        alike[f"{edge:.3f}"] += sum(similarities[place * joined : (place + 1) * joined])
    title = "Near-duplicates, by similarity with the kept one (from this on)"
    audit = [
        (s["id"], s["duplicate_of"], f"{s['similarity']:.3f}", _place(s), _beginning(s))
        for s in examples
        if s["reason"] == "duplicate.near"
    ][:_AUDITED]
    return {
        "similarities": figure.bars(title, "documents", {"dropped": dict(alike)}, ordered=True),
        "audit": figure.table(f"Near-duplicates and what they repeat ({len(audit):,} of {number:,})", _AUDIT_COLUMNS, audit),
    }


def _steps(metrics: Mapping[str, Any], documents: int) -> list[tuple[str, str, str, str]]:
    """Each step of the tasks that read, with its speed on one core, and all of them."""
    seconds = dict(metrics["task_seconds"])
    return [_speed(name, s, metrics["bytes_in"], documents) for name, s in (*seconds.items(), ("all of them", sum(seconds.values())))]


def _parts(metrics: Mapping[str, Any], documents: int) -> list[tuple[str, str, str, str]]:
    """The wall time of each part of the run that there was, and of the whole."""
    parts = [(_PARTS[name], s) for name, s in metrics["seconds"].items() if s >= _SHORTEST_S]
    parts.append(("in all", sum(metrics["seconds"].values())))
    return [_speed(name, s, metrics["bytes_in"], documents) for name, s in parts]


def _speed(name: str, seconds: float, num_bytes: int, documents: int) -> tuple[str, str, str, str]:
    if seconds < _SHORTEST_S:
        return name, f"{seconds:.2f}", "", ""
    return name, f"{seconds:.2f}", f"{num_bytes / seconds / 1e6:.1f}", f"{documents / seconds:,.0f}"


def _samples(examples: Sequence[Mapping[str, Any]], dropped: Counter[str]) -> list[tuple[str, ...]]:
    shown: Counter[str] = Counter()
    table: list[tuple[str, ...]] = []
    for sample in examples:
        reason = sample["reason"]
        shown[reason] += 1
        if shown[reason] <= _SAMPLES_PER_REASON:
            repeats = "" if sample["duplicate_of"] is None else f"{sample['duplicate_of']} ({sample['similarity']:.3f})"
            table.append((f"{reason} ({dropped[reason]:,})", _place(sample), repeats, _beginning(sample)))
    return table


def _place(sample: Mapping[str, Any]) -> str:
    """Where a document came from: the end of its path, and what the source calls it, or its number there."""
    own = f"number {sample['ordinal'] + 1:,}" if sample["source_id"] is None else sample["source_id"]
    return f"{'/'.join(sample['source'].split('/')[-2:])}, {own}"


def _beginning(sample: Mapping[str, Any]) -> str:
    """The excerpt, with a sign that there is more."""
    told = sample["excerpt"] or ""
    return told + "…" * (len(told) >= EXCERPT_CHARS)


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
