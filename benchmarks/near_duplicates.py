"""Near-duplicates whose truth is known: real documents, each with a variant, and families that share nothing but boilerplate.

A variant is the document edited (words replaced, inserted, left out at random), truncated, wrapped (a header and a footer of other
documents' words around it) or reordered (its sentences cut into blocks that change places); how far is drawn so that similarities
spread over 0.5 to 1. The truth is the Jaccard similarity of the two sets of word 5-grams, counted here with plain Python sets; of the
code that is measured only the normal form, which is part of the definition, is used. Members of a family have half of their words or less
in common: all of them are to survive.

Promise: pairs and families are functions of the texts and the seed. Price: seconds for a thousand documents.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.curate.normalize import canonical, clean

__all__ = ["KINDS", "Pair", "families", "found", "pairs", "read_texts", "records", "similarity"]

KINDS = ("edited", "truncated", "wrapped", "reordered")
_NGRAM = 5
_FEWEST_WORDS, _MOST_WORDS = 80, 900
_FAMILY = 12
_BINS = ((0.8, 0.85), (0.85, 0.9), (0.9, 1.0))


@dataclass(frozen=True, slots=True)
class Pair:
    """A real document and a variant of it."""

    original: str
    variant: str
    kind: str
    similarity: float


def read_texts(folder: Path) -> list[str]:
    """The documents of every jsonl file (key `text` or `contents`) in the folder, cut to 900 words; those of fewer than 80 are left out."""
    texts = []
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")]):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            for line in lines:
                value = json.loads(line)
                words = clean(str(value.get("text") or value.get("contents") or "")).split(" ")
                if len(words) >= _FEWEST_WORDS:
                    texts.append(" ".join(words[:_MOST_WORDS]))
    return list(dict.fromkeys(texts))


def similarity(left: str, right: str) -> float:
    """Jaccard similarity of the sets of word 5-grams."""
    a, b = _grams(left), _grams(right)
    return len(a & b) / len(a | b) if a and b else 0.0


def _grams(text: str) -> set[tuple[str, ...]]:
    words = canonical(text).split()
    return {tuple(words[i : i + _NGRAM]) for i in range(max(1, len(words) - _NGRAM + 1))} if words else set()


def pairs(texts: Sequence[str], seed: int = 0) -> list[Pair]:
    """A variant of each text, the kinds in turns."""
    made = []
    for place, text in enumerate(texts):
        pick, kind = random.Random(f"{seed} {place}"), KINDS[place % len(KINDS)]
        other = texts[(place + 1) % len(texts)].split(" ")
        variant = _VARIANTS[kind](text.split(" "), other, pick)
        made.append(Pair(text, variant, kind, similarity(text, variant)))
    return made


def _edited(words: list[str], other: list[str], pick: random.Random) -> str:
    share, edited = pick.uniform(0.002, 0.06), []
    for word in words:
        change = pick.random()
        if change < share / 3:
            continue
        edited.append(pick.choice(other) if change < 2 * share / 3 else word)
        if share > change >= 2 * share / 3:
            edited.append(pick.choice(other))
    return " ".join(edited)


def _truncated(words: list[str], _: list[str], pick: random.Random) -> str:
    return " ".join(words[: max(20, round(len(words) * pick.uniform(0.55, 0.99)))])


def _wrapped(words: list[str], other: list[str], pick: random.Random) -> str:
    length = round(len(words) * pick.uniform(0.0, 0.45))
    header = length // 2
    return " ".join([*other[:header], *words, *other[header:length]])


def _reordered(words: list[str], _: list[str], pick: random.Random) -> str:
    blocks = pick.randint(2, max(2, len(words) // 25))
    cuts = sorted(pick.sample(range(1, len(words)), blocks - 1))
    parts = [words[a:b] for a, b in zip([0, *cuts], [*cuts, len(words)], strict=True)]
    pick.shuffle(parts)
    return " ".join(word for part in parts for word in part)


_VARIANTS = {"edited": _edited, "truncated": _truncated, "wrapped": _wrapped, "reordered": _reordered}


def families(texts: Sequence[str], seed: int = 0, number: int = 8) -> list[list[str]]:
    """Families of 12: the same boilerplate, a third to a half of each member, around words of its own."""
    pick, made = random.Random(f"families {seed}"), []
    for family in range(number):
        boilerplate = texts[family].split(" ")[: pick.randint(50, 75)]
        own = pick.sample(range(number, len(texts)), _FAMILY)
        cut = len(boilerplate) // 2
        bodies = [texts[place].split(" ")[:_FEWEST_WORDS] for place in own]
        made.append([" ".join([*boilerplate[:cut], *body, *boilerplate[cut:]]) for body in bodies])
    return made


def records(made: Sequence[Pair], related: Sequence[Sequence[str]], seed: int = 0) -> list[dict[str, str]]:
    """All documents as rows of id and text, shuffled."""
    rows = [{"id": f"pair-{n}-{side}", "text": getattr(p, side)} for n, p in enumerate(made) for side in ("original", "variant")]
    rows += [{"id": f"family-{n}-{m}", "text": text} for n, family in enumerate(related) for m, text in enumerate(family)]
    random.Random(seed).shuffle(rows)
    return rows


def found(corpus: Path, rows: Iterable[Mapping[str, str]], made: Sequence[Pair], threshold: float) -> dict[str, Any]:
    """What a curated corpus of the records says: recall by similarity and kind, precision, the least similarity of a drop."""
    text_of = {row["id"]: row["text"] for row in rows}
    kept = {row["id"]: row["source_id"] for row in _rows(corpus, "kept")}
    dropped = {row["source_id"]: row for row in _rows(corpus, "dropped")}
    drops = [(similarity(text_of[own], text_of[kept[row["duplicate_of"]]]), row["similarity"]) for own, row in dropped.items()]
    hit = [any(f"pair-{n}-{side}" in dropped for side in ("original", "variant")) for n in range(len(made))]

    def recall(low: float, high: float, kind: str = "") -> tuple[int, float]:
        inside = [hit[n] for n, p in enumerate(made) if low <= p.similarity < high + (high == 1.0) and kind in p.kind]
        return len(inside), sum(inside) / max(len(inside), 1)

    return {
        "pairs": len(made),
        "dropped": len(dropped),
        "families_dropped": sum(own.startswith("family") for own in dropped),
        "least_similarity": min(s for s, _ in drops),
        "precision": sum(s >= threshold for s, _ in drops) / len(drops),
        "largest_error": max(abs(s - told) for s, told in drops),
        "recall_0.85": recall(0.85, 1.0),
        "recall_0.80": recall(0.8, 1.0),
        "recall_by_similarity": {f"{low}-{high}": recall(low, high) for low, high in _BINS},
        "recall_by_kind": {kind: recall(0.8, 1.0, kind) for kind in KINDS},
    }


def _rows(corpus: Path, part: str) -> list[dict[str, Any]]:
    return [row for file in sorted((corpus / part).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
