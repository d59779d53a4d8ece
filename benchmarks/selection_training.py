"""The same small model trained on the same number of tokens, chosen or ordered in different ways: what it makes of held-out text.

Promise: every way takes documents of the same pool, the same number of tokens with the same tokenizer, the same steps and schedule;
a seed sets the sample, the first weights and the order for all ways alike, so ways are compared within a seed. Held out: documents
of the pool that no way may take, and documents of the target's own kind that none has seen, the target's sample included.
Price: a run is about a minute of one core.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import xxhash

from pipelines.curate.curriculum import ranks
from pipelines.curate.features import counts, fixed, sketches, totals
from pipelines.curate.normalize import clean
from pipelines.curate.passes import BUCKETS, PRIOR
from pipelines.curate.quality import judge
from pipelines.curate.resample import best_within, blocks, cover, gumbel, log_ratios, parts_of, uniform
from pipelines.vocabulary import Vocabulary, train_tokenizer
from train.architectures import make_config, make_model
from train.corpus import Sequences
from train.loop import held_out_loss, run
from train.plain import PlainStepper
from train.plan.shapes import ModelShape
from train.recipe import Recipe
from train.state import State

__all__ = ["WAYS", "Pool", "build_pool", "losses"]

LENGTH = 256
VOCABULARY = 2048
DOCUMENT_CHARS = 6000
"""Longer documents are cut: one of them is not to be a tenth of the budget."""
HELD_OUT_SEQUENCES = 120
POOL_TIMES = 3
"""Of the budget, what diverse selection covers."""
SHAPE = ModelShape(
    vocab_size=VOCABULARY, hidden_size=128, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=32, intermediate_size=352,
    tie_embeddings=True, max_length=LENGTH,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pool:
    """What is chosen from, and what is judged on."""

    ids: np.ndarray
    texts: list[str]
    kinds: list[str]
    tokens: list[np.ndarray]
    """Of each document, its end included."""
    target: list[str]
    """Texts like those that are wanted."""
    held_out: dict[str, Sequences]
    vocabulary: Vocabulary

    @property
    def sizes(self) -> np.ndarray:
        return np.array([len(tokens) for tokens in self.tokens])


def build_pool(corpus: Path, samples: list[Path], target: Path) -> Pool:
    """From the corpus of `sterna curate` (of this machine's text), jsonl samples of web text, and the jsonl of the target."""
    found = [(text, kind) for file in sorted(corpus.glob("kept/*.parquet")) for text, kind in _kept(file)]
    found += [(text, "prose") for file in samples for text in _texts(file)]
    documents = [(part, kind) for text, kind in found for part in _cut(text)]
    keyed = {xxhash.xxh3_128_hexdigest(text.encode()): (text, kind) for text, kind in documents}  # equal ones once
    ids = sorted(keyed)
    held_out = {i for i in ids if xxhash.xxh3_64_intdigest(f"held out {i}".encode()) % 25 == 0}
    wanted = [part for text in _texts(target) for part in _cut(text)]
    halves = [[t for t in wanted if xxhash.xxh3_64_intdigest(t.encode()) & 1 == side] for side in (0, 1)]
    aside = sorted(held_out, key=lambda i: xxhash.xxh3_64(i.encode()).digest())
    left = [i for i in ids if i not in held_out]
    serialized = train_tokenizer([keyed[i][0] for i in left[:1500]] + halves[0], VOCABULARY)
    vocabulary = Vocabulary(serialized, VOCABULARY, end=0, pad=1)
    texts = [keyed[i][0] for i in left]
    judged = {"target": halves[1], "pool": [keyed[i][0] for i in aside]}
    return Pool(
        ids=np.array([i.encode() for i in left]),
        texts=texts,
        kinds=[keyed[i][1] for i in left],
        tokens=_tokens(vocabulary, texts),
        target=halves[0],
        held_out={name: _sequences(_tokens(vocabulary, some), HELD_OUT_SEQUENCES) for name, some in judged.items()},
        vocabulary=vocabulary,
    )


Way = Callable[[Pool, int, int], tuple[np.ndarray, bool]]
"""(pool, tokens, seed) -> places of the documents to train on, and whether in this order (else in one drawn from the seed)."""


def at_random(pool: Pool, budget: int, seed: int) -> tuple[np.ndarray, bool]:
    """Any documents."""
    return np.flatnonzero(best_within(uniform(pool.ids, seed), pool.ids, pool.sizes, budget)), False


def filtered(pool: Pool, budget: int, seed: int) -> tuple[np.ndarray, bool]:
    """Any of those that pass the quality rules of their kind."""
    good = np.zeros(len(pool.texts), bool)
    for kind, profile in (("code", "code"), ("prose", "web")):
        places = [i for i, each in enumerate(pool.kinds) if each == kind]
        reasons, _ = judge([pool.texts[i] for i in places], profile)
        good[[place for place, reason in zip(places, reasons, strict=True) if reason is None]] = True
    keys = np.where(good, uniform(pool.ids, seed), -1.0)
    return np.flatnonzero(best_within(keys, pool.ids, pool.sizes, budget) & good), False


def selected(pool: Pool, budget: int, seed: int) -> tuple[np.ndarray, bool]:
    """Resampled towards the target by importance."""
    return np.flatnonzero(best_within(_weights(pool) + gumbel(pool.ids, seed), pool.ids, pool.sizes, budget)), False


def diverse(pool: Pool, budget: int, seed: int) -> tuple[np.ndarray, bool]:
    """Of some times the budget resampled towards the target, those that cover the others."""
    near = np.flatnonzero(best_within(_weights(pool) + gumbel(pool.ids, seed), pool.ids, pool.sizes, POOL_TIMES * budget))
    sizes = pool.sizes
    known = counts(pool.texts, 1 << 18)
    vectors = sketches([pool.texts[i] for i in near], fixed(-np.log((known + 1.0) / (known.sum() + known.size))), 128)
    dealt = blocks(pool.ids[near], 2048, seed)
    shares = parts_of(budget, [int(sizes[near[b]].sum()) for b in dealt])
    chosen = [near[b][cover(vectors[b], np.ones(len(b)), sizes[near[b]], share)] for b, share in zip(dealt, shares, strict=True)]
    return np.sort(np.concatenate(chosen)), False


def ordered(pool: Pool, budget: int, seed: int, by: str) -> tuple[np.ndarray, bool]:
    """The documents of `at_random`, easiest first at the pace of the root."""
    places, _ = at_random(pool, budget, seed)
    texts = [pool.texts[i] for i in places]
    if by == "length":
        difficulty = np.array([len(text) for text in texts], float)
    else:
        known = counts(texts, 1 << 20, pairs=False)
        sums, number = totals(texts, fixed(-np.log((known + 1.0) / (known.sum() + known.size))), pairs=False)
        difficulty = sums / np.maximum(number, 1)
    rank = ranks(difficulty, pool.ids[places], pool.sizes[places], pacing="root", start=0.1, full=0.5, seed=seed)
    return places[np.argsort(rank)], True


WAYS: dict[str, Way] = {
    "random": at_random,
    "filtered": filtered,
    "selected": selected,
    "selected, diverse": diverse,
    "curriculum by rarity": partial(ordered, by="rarity"),
    "curriculum by length": partial(ordered, by="length"),
}


def losses(pool: Pool, way: str, seed: int, steps: int, batch: int) -> dict[str, float]:
    """Train once; the held-out losses in nats per token, and the share of the target's kind in what was trained on."""
    torch.set_num_threads(1)
    num_sequences = steps * batch
    places, in_order = WAYS[way](pool, num_sequences * LENGTH + DOCUMENT_CHARS, seed)  # a little more than is used
    if not in_order:
        places = places[np.argsort(uniform(pool.ids[places], seed + 1000))]
    source = _sequences([pool.tokens[i] for i in places], num_sequences)
    if len(source) < num_sequences:
        raise ValueError(
            f"{way}: its {len(source):,} sequences are fewer than the {num_sequences:,} to train on; give a larger --pool-bytes"
        )
    source.index = np.arange(num_sequences)
    recipe = Recipe(
        steps=steps, global_batch=batch, micro_batch=batch, sequence_length=LENGTH, learning_rate=3e-3, warmup_steps=steps // 10,
        num_workers=1, checkpoint_every=steps, seed=seed, precision="float32",
    )  # fmt: skip
    stepper = PlainStepper(make_model(make_config(SHAPE), seed=seed), recipe)
    state = run(stepper, source, recipe, state=State())
    found = {name: held_out_loss(stepper, sequences, batch) for name, sequences in pool.held_out.items()}
    return found | {"train": state.final_loss(), "documents": float(len(places))}


def _weights(pool: Pool) -> np.ndarray:
    ratios = log_ratios(counts(pool.target, BUCKETS), counts(pool.texts, BUCKETS), PRIOR)
    return totals(pool.texts, fixed(ratios))[0]


def _kept(file: Path) -> Iterator[tuple[str, str]]:
    table = pq.read_table(file, columns=["text", "kind"])
    yield from zip(table["text"].to_pylist(), table["kind"].to_pylist(), strict=True)


def _texts(file: Path) -> Iterator[str]:
    """The documents of a jsonl file, or the articles or paragraphs of a text."""
    if file.suffix == ".txt":
        yield from (clean(text) for text in file.read_text().split("\n\n") if len(text) > 200)
        return
    for line in file.read_text().splitlines():
        row: dict[str, Any] = json.loads(line)
        yield clean(row.get("text") or row["contents"])


def _cut(text: str) -> Iterator[str]:
    """The text in parts of at most so many characters, at line ends where there are some."""
    while len(text) > DOCUMENT_CHARS:
        at = text.rfind("\n", 1, DOCUMENT_CHARS)
        at = at if at > 0 else DOCUMENT_CHARS
        yield text[:at]
        text = text[at:].lstrip("\n")
    if text.strip():
        yield text


def _tokens(vocabulary: Vocabulary, texts: list[str]) -> list[np.ndarray]:
    return [np.array([*ids, vocabulary.end], np.uint16) for ids in vocabulary.encode(texts)]


def _sequences(documents: list[np.ndarray], most: int) -> Sequences:
    """The documents one after the other, cut into sequences without padding, each document a segment; `most` of them."""
    stream = np.concatenate(documents)
    count = min(most, len(stream) // LENGTH)
    owner = np.repeat(np.arange(len(documents)), [len(d) for d in documents])[: count * LENGTH].reshape(count, LENGTH)
    segments = owner - owner[:, :1] + 1
    return Sequences([stream[: count * LENGTH].reshape(count, LENGTH)], [segments.astype(np.uint16)])
