"""Duplicates over a corpus in pieces: the rule over all pairs, whatever the pieces, their order and the partitions."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from pipelines.curate import dedup
from pipelines.curate.config import CurateConfig
from pipelines.curate.dedup import Signatures, duplicates
from pipelines.curate.document import DOCUMENT, document_id
from pipelines.curate.flow import signatures_of
from pipelines.curate.minhash import jaccard, shingles
from pipelines.curate.normalize import canonical
from pipelines.curate.steps import sign, stage
from pipelines.streaming import streaming

CONFIG = CurateConfig(output="unused", ngram=2, bands=8, rows=2, threshold=0.7)


def corpus(seed):
    """32 texts of few words each: originals, edits of them and of edits, copies in other clothes (of dropped ones too), no words."""
    pick = random.Random(seed)
    texts = [" ".join(f"w{pick.randrange(200)}" for _ in range(pick.randint(20, 40))) for _ in range(10)]
    for _ in range(12):
        words = pick.choice(texts).split()
        words[pick.randrange(len(words))] = f"x{pick.randrange(3)}"
        texts.append(" ".join(words[: pick.randint(len(words) - 2, len(words))]))
    texts += [pick.choice(texts).upper() + "!" * pick.randint(0, 1) for _ in range(6)]
    return [*texts, "?!", "?!", "to and " * 9, "to and " * 8]  # the last: the same set of word pairs, and yet no copy


def by_definition(texts, ids, bands):
    """Over all pairs: id of the dropped -> (id of the kept one, similarity, whether the words are equal)."""
    grams = [np.unique(s) for s in shingles([canonical(t) for t in texts], CONFIG.ngram)]
    kept, dropped = [], {}
    for i in sorted(range(len(texts)), key=lambda i: (-len(texts[i]), ids[i])):
        words = canonical(texts[i])
        same = next((k for k in kept if (canonical(texts[k]) or texts[k]) == (words or texts[i])), None)
        near = next((k for k in kept if words and (bands[k] == bands[i]).any() and jaccard(grams[k], grams[i]) >= CONFIG.threshold), None)
        if same is None and near is None:
            kept.append(i)
            continue
        first = min((k for k in (same, near) if k is not None), key=kept.index)
        similarity = 1.0 if first == same else jaccard(grams[first], grams[i])
        dropped[ids[i]] = (ids[first], similarity, first == same)
    return dropped


def in_pieces(texts, cuts, folder):
    """Signatures and pieces of the texts as the steps leave them, cut at `cuts`; documents keep their ids."""
    rows = [
        {"id": document_id(str(n), 0, b""), "text": text, "source": str(n), "ordinal": 0, "kind": "prose", "num_chars": len(text)}
        for n, text in enumerate(texts)
    ]
    tables = [pa.Table.from_pylist(rows[a:b], DOCUMENT) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True) if a < b]
    staged = pa.concat_tables([stage(sign(table, CONFIG), str(folder), CONFIG.bands) for table in tables])
    return signatures_of(staged, CONFIG), staged["piece"].to_pylist()


def named(verdicts, signatures):
    ids = [i.decode() for i in signatures.id]
    parts = (verdicts.document, verdicts.kept, verdicts.similarity, verdicts.exact)
    assert len(set(verdicts.document)) == len(verdicts.document)
    return {ids[d]: (ids[k], s, e) for d, k, s, e in zip(*(p.tolist() for p in parts), strict=True)}


def without_ray(signatures, pieces, order, partition, config):
    """`_near` by its own three functions, in this process, partitions taken in any order."""
    kept, similarity = np.arange(order.size), np.ones(order.size)
    tables = [dedup._fetch_grams(table, config.ngram) for table in dedup._candidates(signatures, pieces, order, partition)]
    together = pa.concat_tables(random.Random(0).sample(tables, len(tables)))
    numbers = together["partition"].to_numpy()
    for number in np.unique(numbers):
        judged = dedup._judge_block(together.filter(pa.array(numbers == number)), config.threshold)
        kept[judged["rank"].to_numpy()], similarity[judged["rank"].to_numpy()] = judged["kept"].to_numpy(), judged["similarity"].to_numpy()
    return kept, similarity


@pytest.mark.parametrize("seed", range(12))
def test_the_verdicts_are_the_rule_over_all_pairs(seed, tmp_path, monkeypatch):
    texts, cuts = corpus(seed), sorted(random.Random(seed).sample(range(1, 30), seed % 4))
    signatures, pieces = in_pieces(texts, cuts, tmp_path)
    monkeypatch.setattr(dedup, "_near", without_ray)
    monkeypatch.setattr(dedup, "_PARTITION_CHARS", [1 << 26, 400][seed % 2])
    verdicts = named(duplicates(signatures, pieces, CONFIG), signatures)
    assert verdicts == by_definition(texts, [i.decode() for i in signatures.id], signatures.bands)
    assert {kept for kept, _, _ in verdicts.values()}.isdisjoint(verdicts)
    assert any(exact for _, _, exact in verdicts.values())
    assert any(not exact for _, _, exact in verdicts.values())


def test_ray_gives_the_same_verdicts(tmp_path, ray_session):
    """In one partition; test_flow.py has many."""
    texts = corpus(3)
    signatures, pieces = in_pieces(texts, [7, 8, 20], tmp_path)
    with streaming():
        verdicts = named(duplicates(signatures, pieces, CONFIG), signatures)
    assert verdicts == by_definition(texts, [i.decode() for i in signatures.id], signatures.bands)


def test_a_block_without_candidates_has_no_verdicts(tmp_path):
    """The shuffle may leave some of its partitions empty."""
    signatures, pieces = in_pieces(["to and " * 9, "to and " * 8], [], tmp_path)
    (wanted,) = dedup._candidates(signatures, pieces, np.arange(2), np.zeros(2, int))
    block = dedup._fetch_grams(wanted, CONFIG.ngram)
    judged = dedup._judge_block(block, CONFIG.threshold)
    assert judged.num_rows == 1
    assert dedup._judge_block(block.slice(0, 0), CONFIG.threshold).equals(judged.slice(0, 0))


def test_without_candidates_nothing_is_read():
    """No piece exists, and no Ray is asked: one document, two that are alike only in having no words, or none at all."""
    for count in (0, 1, 2):
        none = Signatures(
            piece=np.zeros(count, int), row=np.arange(count), id=np.array([b"a", b"b"][:count], "S32"), num_chars=np.ones(count, int),
            digest=np.array([b"1", b"2"][:count], "V16"), bands=np.zeros((count, 8), np.uint64), has_words=np.zeros(count, bool),
        )  # fmt: skip
        assert duplicates(none, ["/no/such/piece"], CONFIG).document.size == 0
