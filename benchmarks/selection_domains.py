"""Resampling towards a domain: how much more of it there is in what was chosen.

Promise: the documents are split into two halves by the hash of their texts; the target is the domain's documents in one half, and
the other half, all domains, is what is chosen from: no document is on both sides. Each split is chosen from with its own Gumbel noise.
How much a target is smoothed (`passes.PRIOR`) was chosen on another sample: Python packages, to be told apart by their code.
"""

from __future__ import annotations

import json
import sysconfig
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from benchmarks.intervals import interval
from pipelines.curate.features import counts, fixed, totals
from pipelines.curate.normalize import clean
from pipelines.curate.passes import BUCKETS, PRIOR
from pipelines.curate.resample import best_within, gumbel, log_ratios

__all__ = ["BUDGET", "PRIORS", "Labelled", "domains_table", "priors_table", "raised", "read_domains", "read_packages"]

BUDGET = 0.1
"""Share of the documents that is chosen."""
PRIORS = (500, 2_000, 8_000, 20_000, 32_000, 128_000)
PACKAGES = (
    ("numpy", 200), ("scipy", 131), ("torch", 130), ("transformers", 105), ("pandas", 97), ("matplotlib", 85), ("sympy", 49),
    ("networkx", 46), ("ray", 39), ("deepspeed", 35), ("aiohttp", 34),
)  # fmt: skip
"""What this project's own environment holds, and how many of their files: about as uneven as the Pile's sample."""
FILE_BYTES = range(200, 40_000)
LEAST = 10
"""Domains with fewer documents than this in all are left out: some halves would have none."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A document and its domain."""

    id: bytes
    text: str
    domain: str


def read_domains(file: Path) -> list[Labelled]:
    """The Pile's sample in DSIR's form: `contents` and `metadata.pile_set_name`."""
    rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    texts = [(clean(row["contents"]), row["metadata"]["pile_set_name"]) for row in rows]
    return [Labelled(xxhash.xxh3_128_hexdigest(f"{i} {text}".encode()).encode(), text, domain) for i, (text, domain) in enumerate(texts)]


def read_packages(root: Path | None = None) -> list[Labelled]:
    """Some Python files of each of the packages, taken by the hash of their names; the package is the domain."""
    root = root or Path(sysconfig.get_paths()["purelib"])
    documents = []
    for package, number in PACKAGES:
        named = {file.relative_to(root).as_posix(): file for file in root.glob(f"{package}/**/*.py") if file.stat().st_size in FILE_BYTES}
        for name in sorted(named, key=lambda name: xxhash.xxh3_64_intdigest(name.encode()))[:number]:
            text = clean(named[name].read_text(errors="replace"))
            documents.append(Labelled(xxhash.xxh3_128_hexdigest(name.encode()).encode(), text, package))
    return documents


def raised(documents: list[Labelled], domains: list[str], split: int, prior: float = PRIOR) -> dict[str, tuple[float, float, int]]:
    """One split: for each domain its share among the candidates and among the chosen, and how many documents the target had."""
    first = np.array([xxhash.xxh3_64_intdigest(d.id, split) & 1 == 0 for d in documents])
    targets, candidates = ([d for d, here in zip(documents, first, strict=True) if here == side] for side in (True, False))
    texts, ids, of = [d.text for d in candidates], np.array([d.id for d in candidates]), np.array([d.domain for d in candidates])
    raw, noise, sizes = counts(texts, BUCKETS), gumbel(ids, split), np.ones(len(ids), np.int64)
    found = {}
    for domain in domains:
        own = [d.text for d in targets if d.domain == domain]
        weights, _ = totals(texts, fixed(log_ratios(counts(own, BUCKETS), raw, prior)))
        chosen = best_within(weights + noise, ids, sizes, int(BUDGET * len(ids)))
        found[domain] = (float((of == domain).mean()), float((of[chosen] == domain).mean()), len(own))
    return found


def priors_table(samples: Mapping[str, list[Labelled]], splits: int, priors: Sequence[float] = PRIORS) -> list[dict[str, Any]]:
    """For each sample and smoothing the mean and the least of what the domains are raised by."""
    rows = []
    for sample, documents in samples.items():
        for prior in priors:
            times = [row["raised"] for row in domains_table(documents, splits, prior)]
            rows.append({"sample": sample, "prior": prior, "mean": float(np.mean(times)), "least": min(times)})
    return rows


def domains_table(documents: list[Labelled], splits: int, prior: float = PRIOR) -> list[dict[str, Any]]:
    """For each domain the shares before and after, and by how much it was raised: means over the splits, 95 % bootstrap interval."""
    sizes = Counter(document.domain for document in documents)
    domains = [domain for domain, size in sizes.most_common() if size >= LEAST]
    found = [raised(documents, domains, split, prior) for split in range(splits)]
    rows = []
    for domain in domains:
        before, after, target = (np.array([split[domain][part] for split in found]) for part in range(3))
        times = interval(splits, lambda i, before=before, after=after: float(after[i].mean() / before[i].mean()))
        rows.append(
            {
                "domain": domain, "documents": sizes[domain], "target_documents": float(target.mean()),
                "before": float(before.mean()), "after": float(after.mean()),
                "raised": times.value, "low": times.low, "high": times.high, "least": float((after / before).min()),
            }
        )  # fmt: skip
    return rows
