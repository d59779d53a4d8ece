"""Duplicates over a whole corpus: exact copies and near-duplicates, each drop verified against a document that is kept.

Promise: what is dropped depends on the documents and the configuration alone, not on the pieces they are read in, their
order, whether the driver or shuffles find the candidates, or how often a task is retried; every drop names a kept document and
their exact similarity. Price: tasks read again only the documents that are someone's candidate and write their sets of shingles
once; each holds about `task_bytes` of them at a time. How: `label.py` says who is compared, `components.py` decides, this file
brings the two together: labels -> sets dealt to groups of whole components -> fates dealt back to the documents' bundles.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.curate.bundle import Bundle, bundle_of
from pipelines.curate.components import Candidates, duplicates_among, survivor_order
from pipelines.curate.config import CurateConfig
from pipelines.curate.fates import FATE, Fates, write_fates
from pipelines.curate.label import Labels, label
from pipelines.curate.shards import gather
from pipelines.curate.shelf import Shelf, shelve, shelved_schema
from pipelines.curate.signature import digests_of, values_of
from pipelines.curate.tasks import in_tasks

__all__ = ["SIMILARITY_BINS", "Comparison", "duplicates"]

SIMILARITY_BINS = 20
"""Of the histogram of near-duplicates' similarities, from the threshold to 1."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of comparing the documents."""

    fates: Fates
    """Of the duplicates."""
    num_candidates: int
    """Documents that shared a bucket with another."""
    num_edges: int
    rounds: int
    """Steps that the components took; 0 where the driver joined the edges."""
    similarities: list[int]
    """Near-duplicates in each of `SIMILARITY_BINS`."""
    seconds: dict[str, float]
    """Wall time of finding the candidates, of making their sets, of comparing them."""


def duplicates(bundles: Sequence[Bundle], config: CurateConfig, folder: str) -> Comparison:
    """Who is dropped as a duplicate. Ray must be attached; `folder` is working state on storage that every task reaches."""
    clock = [time.monotonic()]
    labels = label(bundles, config, folder)
    clock.append(time.monotonic())
    num_groups = _num_groups(bundles, labels, config)
    if num_groups:
        in_tasks(shelve, bundles, labels, num_groups, config, folder)
    clock.append(time.monotonic())
    fates = Fates(f"{folder}/fates", num_groups)
    eras = [(bundle.era, bundle.settled) for bundle in bundles]
    counts = sum(in_tasks(judge_group, range(num_groups), eras, fates, config, folder), np.zeros(SIMILARITY_BINS, np.int64))
    clock.append(time.monotonic())
    seconds = dict(zip(("candidates", "sets", "compare"), np.diff(clock).round(3).tolist(), strict=True))
    return Comparison(fates, labels.num_documents, labels.num_edges, labels.rounds, counts.tolist(), seconds)


def _num_groups(bundles: Sequence[Bundle], labels: Labels, config: CurateConfig) -> int:
    """So many that the sets of one fill half of `task_bytes` on average: components come in all sizes. None without candidates."""
    if not labels.num_documents:
        return 0
    chars = sum(bundle.num_chars for bundle in bundles) / sum(bundle.num_documents for bundle in bundles)
    return max(1, round(2 * labels.num_documents * chars / config.task_bytes))


def judge_group(group: int, eras: list[tuple[int, bool]], fates: Fates, config: CurateConfig, folder: str) -> np.ndarray:
    """Apply the rule to whole components and write the fates; the histogram of the near-duplicates' similarities."""
    shelved = gather(f"{folder}/shelf", range(len(eras)), group, shelved_schema(config.bands))
    place = shelved["place"].to_numpy()
    era, settled = (np.array(values)[bundle_of(place)] for values in zip(*eras, strict=True))
    ids = shelved["id"].to_numpy(zero_copy_only=False).astype("S32")
    order = survivor_order(era, shelved["claim"].to_numpy(), ids)
    order = order[np.argsort(shelved["component"].to_numpy()[order], kind="stable")]  # a component's sets are read together
    shelved, place, settled = shelved.take(pa.array(order)), place[order], settled[order]
    documents = Candidates(
        bands=values_of(shelved["bands"], np.uint64),
        digest=digests_of(shelved["digest"]),
        num_grams=shelved["num_grams"].to_numpy(),
        settled=settled,
    )
    shelf = Shelf(f"{folder}/shelf", bundle_of(place), shelved["offset"].to_numpy(), documents.num_grams, config.task_bytes)
    kept, similarity = duplicates_among(documents, shelf, config.threshold, config.bucket_limit)
    dropped = np.flatnonzero(kept != np.arange(kept.size))
    kept, similarity = kept[dropped], similarity[dropped]
    exact = documents.digest[dropped] == documents.digest[kept]
    reason = np.array(["duplicate.near", "duplicate.exact"], object)[exact.astype(int)]
    named = pa.array(ids[order][kept].tolist(), pa.binary()).cast(pa.string())
    table = pa.table([place[dropped], pa.array(reason, pa.string()), named, similarity], FATE)
    write_fates(table, fates, group, sum(not settled for _, settled in eras))
    return np.histogram(similarity[~exact], SIMILARITY_BINS, (config.threshold, 1.0))[0]
