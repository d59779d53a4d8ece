"""Small corpora for tests of duplicates: texts, the rule by definition, and pieces as the steps leave them."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa

from pipelines.curate.bundle import Piece, bundled
from pipelines.curate.config import CurateConfig
from pipelines.curate.document import DOCUMENT, document_id
from pipelines.curate.fates import read_fates
from pipelines.curate.minhash import band_values, jaccard, shingles
from pipelines.curate.normalize import canonical
from pipelines.curate.steps import sign, stage

CONFIG = CurateConfig(output="unused", ngram=2, bands=8, rows=2, threshold=0.7)


def here(function, items, *shared):
    """`in_tasks` without Ray, the last item first: hundreds of small corpora in seconds."""
    results = [function(item, *shared) for item in reversed(items)]
    return results[::-1]


def texts_like(seed):
    """32 texts of few words each: originals, edits of them and of edits, copies in other clothes (of dropped ones too), no words."""
    pick = random.Random(seed)
    texts = [" ".join(f"w{pick.randrange(200)}" for _ in range(pick.randint(20, 40))) for _ in range(10)]
    for _ in range(12):
        words = pick.choice(texts).split()
        words[pick.randrange(len(words))] = f"x{pick.randrange(3)}"
        texts.append(" ".join(words[: pick.randint(len(words) - 2, len(words))]))
    texts += [pick.choice(texts).upper() + "!" * pick.randint(0, 1) for _ in range(6)]
    return [*texts, "?!", "?!", "to and " * 9, "to and " * 8]  # the last: the same set of word pairs, and yet no copy


def id_of(name, number):
    return document_id(f"{name}{number}", 0, b"")


def in_pieces(texts, cuts, folder, config=CONFIG, name=""):
    """The texts signed and staged, cut at `cuts`; documents have the same ids whatever the cuts."""
    rows = [
        {"id": id_of(name, n), "text": text, "source": f"{name}{n}", "ordinal": 0, "kind": "prose", "num_chars": len(text)}
        for n, text in enumerate(texts)
    ]
    tables = [pa.Table.from_pylist(rows[a:b], DOCUMENT) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True) if a < b]
    staged = [stage(sign(table, config), str(folder), config).to_pylist()[0] for table in tables]
    return [Piece(s["piece"], s["signatures"], s["num_documents"], s["num_chars"]) for s in staged]


def in_bundles(texts, cuts, folder, config=CONFIG, most_chars=200):
    return bundled(in_pieces(texts, cuts, folder, config), [], most_chars)


def by_definition(texts, ids, config=CONFIG, settled=()):
    """Over all pairs: id of the dropped -> (reason, id of the kept one, similarity). `settled` are the numbers of those that stay."""
    words = [canonical(text) for text in texts]
    grams = [np.unique(s) for s in shingles(words, config.ngram)]
    bands = [band_values(g, bands=config.bands, rows=config.rows, seed=config.seed) for g in grams]
    kept, dropped = [], {}
    for i in sorted(range(len(texts)), key=lambda i: (i not in settled, -len(texts[i]), ids[i])):
        same = [k for k in kept if (words[k] or texts[k]) == (words[i] or texts[i])]
        near = [k for k in kept if words[i] and words[k] and (bands[k] == bands[i]).any()]
        near = [k for k in near if jaccard(grams[k], grams[i]) >= config.threshold]
        if i in settled or not same + near:
            kept.append(i)
        elif same:
            dropped[ids[i]] = ("duplicate.exact", ids[same[0]], 1.0)
        else:
            dropped[ids[i]] = ("duplicate.near", ids[near[0]], jaccard(grams[near[0]], grams[i]))
    return dropped


def fates_by_id(bundles, fates):
    """What `by_definition` returns, from the fates on storage."""
    from pipelines.curate.bundle import piece_of, row_of
    from pipelines.curate.piece import read_piece

    found = {}
    for bundle in bundles:
        if bundle.settled:
            continue
        ids = [read_piece(piece.text, ["id"])["id"].to_pylist() for piece in bundle.pieces]
        table = read_fates([fates], bundle.number)
        place = table["place"].to_numpy()
        for piece, row, fate in zip(piece_of(place), row_of(place), table.to_pylist(), strict=True):
            assert ids[piece][row] not in found
            found[ids[piece][row]] = (fate["reason"], fate["duplicate_of"], fate["similarity"])
    return found
