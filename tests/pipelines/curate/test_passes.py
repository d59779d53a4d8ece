"""Questions asked of texts where they lie: the answers of the whole, however it is cut into pieces."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from pipelines.curate.document import DOCUMENT
from pipelines.curate.features import counts
from pipelines.curate.passes import BUCKETS, PRIOR, Part, covering, identities, importance, num_tokens, rarity, target_counts, unsureness
from pipelines.curate.piece import write_piece
from pipelines.curate.records import Fields

SEA = ["tern", "wave", "gull", "salt", "wind", "cliff", "nest", "tide", "foam", "sail"]
CODE = ["def", "return", "self", "import", "class", "lambda", "yield", "print", "range", "None"]


def text_of(seed, words):
    pick = random.Random(seed)
    return " ".join(pick.choice(words) for _ in range(pick.randrange(20, 60)))


@pytest.fixture(scope="module")
def documents():
    return [text_of(i, SEA if i % 4 == 0 else CODE) for i in range(60)]


def parts_of(folder, texts, cuts):
    """The texts as parts of pieces that end at the cuts; every second row of a piece belongs to nobody."""
    parts = []
    for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(texts)], strict=True)):
        rows = [{"id": f"{i:032x}", "text": text, "num_chars": len(text)} for i in range(begin, end) for text in (texts[i], "nobody's")]
        uri = f"{folder}/{number}.parquet"
        write_piece(pa.Table.from_pylist(rows, DOCUMENT), uri)
        parts.append(Part(uri, np.arange(0, len(rows), 2)))
    return parts


@pytest.fixture(scope="module", params=[[], [7, 30, 30, 41]], ids=["one piece", "five pieces, one empty"])
def parts(request, documents, tmp_path_factory, ray_session):
    return parts_of(tmp_path_factory.mktemp("pieces"), documents, request.param)


def test_ids_and_lengths(parts, documents):
    ids, num_chars = identities(parts)
    assert ids.tolist() == [f"{i:032x}".encode() for i in range(60)]
    assert num_chars.tolist() == [len(text) for text in documents]


def test_importance_is_the_log_ratio_of_the_bags(parts, documents, tmp_path):
    (tmp_path / "target.txt").write_text("\n\n".join(text_of(1000 + i, SEA) for i in range(20)))
    target = target_counts([str(tmp_path)], Fields())
    assert target.tolist() == counts([(tmp_path / "target.txt").read_text()], BUCKETS).tolist()
    found = importance(parts, target)
    raw = counts(documents, BUCKETS)
    for place, text in enumerate(documents):
        own = counts([text], BUCKETS)
        among = raw[own > 0] / raw.sum()
        ratio = np.log((target[own > 0] + PRIOR * among) / (target.sum() + PRIOR) / among)
        assert found[place] == pytest.approx(float((own[own > 0] * ratio).sum()), abs=1e-3)
        assert (found[place] > 0) == (place % 4 == 0)


def test_a_target_without_words_is_refused(ray_session, tmp_path):
    (tmp_path / "target.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"select_target: .* holds no words"):
        target_counts([str(tmp_path / "target.txt")], Fields())


def test_rarity_is_the_mean_surprise_of_the_words(parts, documents):
    known = Counter(word for text in documents for word in text.lower().split())
    total = known.total() + (1 << 20)
    expected = [np.mean([-math.log((known[word] + 1) / total) for word in text.lower().split()]) for text in documents]
    assert rarity(parts) == pytest.approx(expected, abs=1e-5)


def test_tokens_are_counted_with_the_end(parts, documents, tiny_model_dir):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
    assert num_tokens(parts, str(tiny_model_dir)).tolist() == [len(tokenizer.encode(text).ids) + 1 for text in documents]


def test_a_model_reads_each_document_by_itself(parts, documents, tiny_model_dir):
    """Bit for bit what it is for the document alone, whatever else its task reads."""
    from pipelines.curate.model_scores import score_texts

    found = unsureness(parts, str(tiny_model_dir), "loss", 32)
    assert found.tolist() == [score_texts([text], str(tiny_model_dir), "loss", 32)[0] for text in documents]


def test_what_covers_is_diverse_and_does_not_depend_on_the_pieces(documents, tmp_path, ray_session, monkeypatch):
    monkeypatch.setattr("pipelines.curate.passes._BLOCK_DOCUMENTS", 25)
    texts = [documents[0]] * 20 + documents[20:]  # twenty alike, forty of two kinds
    chosen = []
    for cuts in ([], [10, 50]):
        parts = parts_of(tmp_path, texts, cuts)
        ids, _ = identities(parts)
        bounds = np.cumsum([0, *map(len, parts)])
        places = [np.arange(begin, end) for begin, end in pairwise(bounds)]
        chosen.append(covering(parts, places, ids, np.ones(60, np.int64), 12, 0, str(tmp_path / "shuffle")).tolist())
        assert not (tmp_path / "shuffle").exists()
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 12
    assert sum(place < 20 for place in chosen[0]) <= 3  # at most one of the alike in each block
