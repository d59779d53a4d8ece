"""Documents that hold parts of an evaluation set: dropped, or freed of them, and what was hit is told.

Promise: a document is dropped (`contaminated.SET`) if and only if it shares an n-gram with an item of the set, exactly, word by
word; with `cut` the lines that hold a shared passage go instead, and the document only if less than half of its words would stay.
Every hit is kept for the report: set, item, passage. Price: see evaluations.py; grams that are to be ignored because many
documents hold them have to be counted first, which reads the input twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from cluster import figure
from cluster.figure import Figure
from cluster.storage import content_digest
from pipelines.curate.config import CurateConfig
from pipelines.curate.document import HIT, excerpt, replaced
from pipelines.curate.evaluations import Evaluations, Shared, read_items
from pipelines.curate.normalize import canonical, clean
from pipelines.curate.reading import read_files
from pipelines.curate.records import Fields
from pipelines.curate.tasks import in_tasks

__all__ = [
    "common_grams",
    "decontaminate",
    "evaluation_inputs",
    "figures",
    "freed",
    "steps",
    "summary",
    "told",
    "without_lines",
]

_LEAST_LEFT = 0.5
_MOST_ROWS = 40


def evaluation_inputs(config: CurateConfig) -> dict[str, str]:
    """Digests of the evaluation sets. ValueError for one that cannot be read."""
    read_items(config.decontaminate, config.decontaminate_fields)
    return {f"decontaminate {uri}": content_digest(uri) for uri in config.decontaminate}


def steps(config: CurateConfig, chunks: Sequence[pa.Table], fields: Fields) -> list[tuple[str, Callable[[pa.Table], pa.Table]]]:
    """The step to take, with its name; none where no evaluation set is given. Ray must be attached.

    Where common passages are to be ignored they are counted now, in all of the input's chunks.
    """
    if not config.decontaminate:
        return []
    items = read_items(config.decontaminate, config.decontaminate_fields)
    found = Evaluations(items, ngram=config.decontaminate_ngram, shortest=config.decontaminate_shortest)
    if config.decontaminate_common:
        counted = in_tasks(_count_grams, chunks, fields, ray.put(found))
        found = found.without(common_grams(counted, config.decontaminate_common))
    return [("decontaminate", partial(decontaminate, evaluations=ray.put(found), cut=config.decontaminate_cut))]


def decontaminate(documents: pa.Table, evaluations: Evaluations | Any, *, cut: bool) -> pa.Table:
    """Drop or cut the documents that share passages with the evaluations; adds the column `hits` (a list of `HIT`)."""
    evaluations = evaluations if isinstance(evaluations, Evaluations) else ray.get(evaluations)
    texts, reasons = documents["text"].to_pylist(), documents["reason"].to_pylist()
    excerpts, num_chars, num_words = (documents[name].to_pylist() for name in ("excerpt", "num_chars", "num_words"))
    hits: list[list[dict[str, Any]]] = [[] for _ in texts]
    places = [i for i, text in enumerate(texts) if text is not None]
    canonicals = [canonical(texts[i]) for i in places]
    for place, words, shared in zip(places, canonicals, evaluations.shared(canonicals), strict=True):
        if not shared:
            continue
        left = freed(texts[place], evaluations) if cut else None
        hits[place] = _hits(evaluations, words.split(" "), shared, cut=left is not None)
        if left is not None:
            texts[place], num_chars[place], num_words[place] = left, len(left), len(left.split())
        else:
            reasons[place] = f"contaminated.{hits[place][0]['set']}"
            texts[place], excerpts[place] = None, excerpt(hits[place][0]["passage"])
    documents = replaced(documents, text=texts, reason=reasons, excerpt=excerpts, num_chars=num_chars, num_words=num_words)
    return documents.append_column("hits", pa.array(hits, pa.list_(HIT)))


def freed(text: str, evaluations: Evaluations) -> str | None:
    """The text without the lines that hold shared passages; None if less than half of its words would be left.

    What comes to stand side by side where lines went is looked at again, so that what is left shares nothing.
    """
    least = _LEAST_LEFT * len(canonical(text).split())
    while shared := evaluations.shared([canonical(text)])[0]:
        text = without_lines(text, shared)
    return text if len(canonical(text).split()) >= least else None


def without_lines(text: str, shared: Sequence[Shared]) -> str:
    r"""The text without the lines that hold words of the shared runs.

    >>> without_lines("one two\nthree four\nfive\nsix seven", [Shared(0, 2, 3)])
    'one two\nfive\nsix seven'
    """
    kept, number = [], 0
    for line in text.split("\n"):
        count = len(canonical(line).split())
        if not any(run.begin < number + count and number < run.end for run in shared):
            kept.append(line)
        number += count
    return "\n".join(kept).strip("\n")


def common_grams(counted: Iterable[Mapping[int, int]], most: int) -> frozenset[int]:
    """The n-grams that more than `most` documents hold, from counts by hash (`Evaluations.documents_by_gram`)."""
    total: Counter[int] = Counter()
    for held in counted:
        total.update(held)
    return frozenset(gram for gram, documents in total.items() if documents > most)


def told(config: CurateConfig, hits: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Metrics and figures of what was hit; nothing where no evaluation set is given."""
    if not config.decontaminate:
        return {}, {}
    items = read_items(config.decontaminate, config.decontaminate_fields)
    found = summary(Evaluations(items, ngram=config.decontaminate_ngram, shortest=config.decontaminate_shortest), hits)
    return {"decontamination": found}, figures(found, hits)


def summary(evaluations: Evaluations, hits: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """For the manifest: of each set its items, those looked for, those hit, and the documents dropped and cut."""
    found: dict[str, dict[str, int]] = {}
    too_short = set(evaluations.too_short)
    for number, item in enumerate(evaluations.items):
        row = found.setdefault(item.set, {"items": 0, "too_short": 0, "items_hit": 0, "documents_hit": 0})
        row["items"] += 1
        row["too_short"] += number in too_short
    items: dict[str, set[str]] = defaultdict(set)
    for hit in hits:
        found[hit["set"]]["documents_hit"] += 1
        items[hit["set"]].add(hit["item"])
    for name, hit_items in items.items():
        found[name]["items_hit"] = len(hit_items)
    return found


def figures(summaries: Mapping[str, Mapping[str, int]], hits: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Items hit by set, and the table of which: set, item, documents, the longest passage that was found."""
    by_item: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for hit in hits:
        by_item[hit["set"], hit["item"]].append(hit)
    ordered = sorted(by_item.items(), key=lambda entry: (-len(entry[1]), entry[0][0], len(entry[0][1]), entry[0][1]))
    rows = [
        (name, item, len(each), sum(hit["cut"] for hit in each), excerpt(max((h["passage"] for h in each), key=lambda p: (len(p), p))))
        for (name, item), each in ordered[:_MOST_ROWS]
    ]
    shares = {
        "items": {name: row["items"] for name, row in summaries.items()},
        "found in the corpus": {name: row["items_hit"] for name, row in summaries.items()},
    }
    title = f"Evaluation items found in the corpus ({len(by_item):,}, the most frequent first)"
    return {
        "contaminated": figure.bars("Evaluation sets, and how many of their items the corpus held", "items", shares),
        "contaminated items": figure.table(title, ("set", "item", "documents", "of these cut", "passage"), rows),
    }


def _count_grams(files: pa.Table, fields: Fields, evaluations: Evaluations) -> Counter[int]:
    """How many documents of the files hold each n-gram of the evaluations."""
    held: Counter[int] = Counter()
    for documents in read_files(files, fields):
        texts = [canonical(clean(text)) for text in documents["text"].to_pylist() if text is not None]
        held.update(evaluations.documents_by_gram(texts))
    return held


def _hits(evaluations: Evaluations, words: list[str], shared: Sequence[Shared], *, cut: bool) -> list[dict[str, Any]]:
    """One for each item, the longest passage of it, in the order of the sets."""
    longest: dict[int, Shared] = {}
    for run in shared:
        best = longest.get(run.item)
        if best is None or run.end - run.begin > best.end - best.begin:
            longest[run.item] = run
    return [
        {
            "set": evaluations.items[item].set,
            "item": evaluations.items[item].name,
            "passage": excerpt(" ".join(words[longest[item].begin : longest[item].end])),
            "cut": cut,
        }
        for item in sorted(longest)
    ]
