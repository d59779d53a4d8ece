"""Questions asked of the texts of a corpus where they lie: a task for each piece, small answers to the driver.

Promise: answers depend on the documents, not on the pieces or on retries: counts are whole numbers, scores sums of whole
multiples of 2^-20 (features.py), and a model reads each document by itself. Price: each question reads the texts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from cluster.storage import absolute
from pipelines.curate.features import counts, fixed, sketches, totals
from pipelines.curate.normalize import clean
from pipelines.curate.piece import read_rows
from pipelines.curate.reading import read_files
from pipelines.curate.records import Fields
from pipelines.curate.resample import Floats, blocks, cover, log_ratios, parts_of
from pipelines.curate.shards import forget, gather, scatter
from pipelines.curate.sources import chunked, find_files
from pipelines.curate.spans import Ints
from pipelines.curate.tasks import in_tasks
from pipelines.vocabulary import Vocabulary, open_tokenizer

__all__ = ["Part", "covering", "identities", "importance", "num_tokens", "rarity", "target_counts", "unsureness"]

BUCKETS = 10_000
"""Of hashed words and pairs, for importance weights: the paper's."""
PRIOR = 32_000.0
"""Raw features that a target's counts are smoothed with: with few, one rare word outweighs a page. Chosen on Python packages, to be told
apart by their code (`benchmarks.selection --priors`), not on the Pile's domains, by which selection is judged."""
_WORD_BUCKETS = 1 << 20
_PAIR_BUCKETS = 1 << 18
_SKETCH_WIDTH = 128
_BLOCK_DOCUMENTS = 2048

_SKETCH = pa.schema({"rank": pa.int64(), "place": pa.int64(), "size": pa.int64(), "vector": pa.list_(pa.float32(), _SKETCH_WIDTH)})


@dataclass(frozen=True, slots=True)
class Part:
    """Some documents of one piece."""

    uri: str
    rows: Ints

    def __len__(self) -> int:
        return int(self.rows.size)

    def texts(self) -> list[str]:
        """Their texts, read now."""
        return list(read_rows(self.uri, self.rows, ["text"])["text"].to_pylist()) if len(self) else []


def identities(parts: Sequence[Part]) -> tuple[Any, Ints]:
    """The ids (S32) and the numbers of characters of the parts' documents."""
    found = in_tasks(_identity, parts)
    return np.concatenate([np.zeros(0, "S32"), *(i for i, _ in found)]), np.concatenate([np.zeros(0, np.int64), *(n for _, n in found)])


def target_counts(inputs: Sequence[str], fields: Fields) -> Ints:
    """The hashed words and pairs of a target's documents [BUCKETS], read as the input is. ValueError if there are none."""
    counted = in_tasks(_count_files, chunked(find_files(inputs), 0), fields)
    total = _summed(counted, BUCKETS)
    if not total.any():
        raise ValueError(f"select_target: {', '.join(inputs)} holds no words; give documents like those that are wanted")
    return total


def importance(parts: Sequence[Part], target: Ints) -> Floats:
    """The log importance weight of each document: Σ log p(feature | target) - log p(feature | these documents), as in DSIR."""
    raw = _summed(in_tasks(_count, parts, BUCKETS, True), BUCKETS)
    found = in_tasks(_total, parts, ray.put(fixed(log_ratios(target, raw, PRIOR))), True)
    return _together(sums for sums, _ in found)


def rarity(parts: Sequence[Part]) -> Floats:
    """The mean -log p of each document's words, p as often as a word stands in these documents (Platanios et al. 2019, by the word)."""
    found = in_tasks(_total, parts, ray.put(_surprise(parts, _WORD_BUCKETS, pairs=False)), False)
    return _together(sums / np.maximum(number, 1) for sums, number in found)


def unsureness(parts: Sequence[Part], folder: str, measure: str, max_tokens: int) -> Floats:
    """How unsure the model in the folder is of each document: see model_scores.py."""
    return _together(in_tasks(_score, parts, absolute(folder), measure, max_tokens))


def num_tokens(parts: Sequence[Part], tokenizer: str) -> Ints:
    """The tokens of each document, its end-of-text token included."""
    vocabulary = ray.put(open_tokenizer(Path(tokenizer)))
    return np.concatenate([np.zeros(0, np.int64), *in_tasks(_tokens, parts, vocabulary)])


def covering(parts: Sequence[Part], places: Sequence[Ints], ids: Any, sizes: Ints, budget: int, seed: int, folder: str) -> Ints:
    """Places of documents that cover all of the given ones within the budget: facility location on sketches of their words.

    `places`: for each part those of its documents in `ids` and `sizes`. The documents are dealt into blocks by the hash of their
    ids, and each block chooses its share. `folder`: for the shuffle that brings a block together.
    """
    pool = np.concatenate([np.zeros(0, np.int64), *places])
    dealt = blocks(ids[pool], _BLOCK_DOCUMENTS, seed)
    block, rank = np.empty(pool.size, np.int64), np.empty(pool.size, np.int64)
    for number, members in enumerate(dealt):
        block[members], rank[members] = number, np.arange(members.size)
    weights = ray.put(_surprise(parts, _PAIR_BUCKETS, pairs=True))
    bounds = np.cumsum([0, *map(len, parts)]).tolist()
    items = [
        (number, part, {"rank": rank[begin:end], "place": pool[begin:end], "size": sizes[pool[begin:end]]}, block[begin:end])
        for number, (part, begin, end) in enumerate(zip(parts, bounds, bounds[1:], strict=False))
    ]
    in_tasks(_sketch, items, weights, len(dealt), folder)
    shares = parts_of(budget, [int(sizes[pool[members]].sum()) for members in dealt])
    chosen = in_tasks(_cover, list(enumerate(shares)), len(items), folder)
    forget(folder)
    found = np.sort(np.concatenate([np.zeros(0, np.int64), *chosen]))
    return found if found.size else pool[np.argsort(ids[pool])[:1]]  # none fits: one at least


def _surprise(parts: Sequence[Part], buckets: int, *, pairs: bool) -> Ints:
    """-log p of each bucket's features, for `features.totals`."""
    known = _summed(in_tasks(_count, parts, buckets, pairs), buckets)
    return fixed(-np.log((known + 1.0) / (known.sum() + known.size)))


def _summed(counted: Iterable[tuple[Ints, Ints]], buckets: int) -> Ints:
    total = np.zeros(buckets, np.int64)
    for bucket, number in counted:
        total[bucket] += number
    return total


def _together(found: Iterable[Floats]) -> Floats:
    return np.concatenate([np.zeros(0), *found])


def _sparse(total: Ints) -> tuple[Ints, Ints]:
    bucket = np.flatnonzero(total)
    return bucket, total[bucket]


def _identity(part: Part) -> tuple[Any, Ints]:
    rows = read_rows(part.uri, part.rows, ["id", "num_chars"])
    return np.array(rows["id"].to_pylist(), "S32"), rows["num_chars"].to_numpy()


def _count(part: Part, buckets: int, pairs: bool) -> tuple[Ints, Ints]:
    return _sparse(counts(part.texts(), buckets, pairs=pairs))


def _count_files(files: pa.Table, fields: Fields) -> tuple[Ints, Ints]:
    total = np.zeros(BUCKETS, np.int64)
    for documents in read_files(files, fields):
        total += counts([clean(text) for text in documents["text"].to_pylist() if text is not None], BUCKETS)
    return _sparse(total)


def _total(part: Part, scores: Ints, pairs: bool) -> tuple[Floats, Ints]:
    return totals(part.texts(), scores, pairs=pairs)


def _score(part: Part, folder: str, measure: Any, max_tokens: int) -> Floats:
    from pipelines.curate.model_scores import score_texts  # torch: only the tasks that read with a model load it

    return score_texts(part.texts(), folder, measure, max_tokens)


def _tokens(part: Part, vocabulary: Vocabulary) -> Ints:
    return np.array([len(ids) + 1 for ids in vocabulary.encode(part.texts())], np.int64)


def _sketch(item: tuple[int, Part, dict[str, Ints], Ints], weights: Ints, num_blocks: int, folder: str) -> None:
    number, part, columns, block = item
    vectors = sketches(part.texts(), weights, _SKETCH_WIDTH)
    vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), _SKETCH_WIDTH)
    scatter(pa.table({**columns, "vector": vector}, _SKETCH), block, num_blocks, folder, number)


def _cover(item: tuple[int, int], num_files: int, folder: str) -> Ints:
    """The places that a block chooses for its share of the budget."""
    block, share = item
    rows = gather(folder, range(num_files), block, _SKETCH).sort_by("rank")
    vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, _SKETCH_WIDTH)
    chosen = cover(vectors, np.ones(len(rows)), rows["size"].to_numpy(), share)
    return rows["place"].to_numpy()[chosen]
