"""Repeated paragraphs against a count over all documents at once, whatever the bundles."""

from __future__ import annotations

import dataclasses
import doctest
import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipelines.curate.paragraphs
from pipelines.curate import paragraphs
from pipelines.curate.bundle import bundled, places
from pipelines.curate.fates import FATE, Fates, write_fates
from pipelines.curate.normalize import canonical
from pipelines.curate.paragraphs import EMPTIED, cut_documents, cut_text, find_repeated, paragraph_keys, read_cuts
from pipelines.curate.piece import read_piece, write_piece
from pipelines.curate.shards import gather
from tests.pipelines.curate.corpora import CONFIG, here, id_of, in_pieces

NOTICE = "Permission is hereby granted, free of charge, to any person."
PARAGRAPH = st.sampled_from([NOTICE, NOTICE.upper(), "A heading", "", "All of these words are said once more.", "- - -"])


def texts_like(seed):
    """30 documents of up to four paragraphs, many of them in several documents, one of nothing else."""
    pick = random.Random(seed)
    shared = [" ".join(f"s{pick.randrange(50)}" for _ in range(8)) for _ in range(4)]
    texts = []
    for n in range(30):
        own = [f"Document {n} has {pick.randrange(1000)} words of its own here."] * pick.randrange(3)
        several = [pick.choice(shared) for _ in range(pick.randint(0, 3))]
        texts.append("\n\n".join(pick.sample(own + several, len(own + several))) or "Heading only")
    return texts


def by_definition(texts, ids, dropped, most):
    """The texts that are left: a paragraph goes from all but the first `most` documents that have it."""
    order = sorted((n for n in range(len(texts)) if n not in dropped), key=lambda n: (-len(texts[n]), ids[n]))
    seen, left = {}, {}
    for n in order:
        kept = []
        mine = set()
        for paragraph in texts[n].split("\n\n"):
            words = canonical(paragraph)
            long_enough = len(words.split()) >= 5
            if long_enough and words not in mine:
                mine.add(words)
                seen[words] = seen.get(words, 0) + 1
            if not long_enough or seen[words] <= most:
                kept.append(paragraph)
        left[n] = "\n\n".join(kept)
    return left


def test_the_worked_examples():
    assert doctest.testmod(pipelines.curate.paragraphs).failed == 0


@pytest.mark.parametrize("seed", range(6))
def test_what_is_cut_is_what_a_count_over_all_documents_says(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(paragraphs, "in_tasks", here)
    texts, most = texts_like(seed), seed % 3 + 1
    config = dataclasses.replace(CONFIG, paragraphs=True, paragraph_documents=most, task_bytes=[500, 1 << 20][seed % 2])
    cuts = sorted(random.Random(seed).sample(range(1, 30), seed))
    bundles = bundled(in_pieces(texts, cuts, tmp_path), [], [1, 1000][seed % 2])
    place_of, dropped = {}, {4, 11}
    for bundle in bundles:
        for number, piece in enumerate(bundle.pieces):
            rows = read_piece(piece.text, ["id"])["id"].to_pylist()
            place_of |= {i: int(place) for i, place in zip(rows, places(bundle.number, number, range(len(rows))), strict=True)}
    ids = [id_of("", n) for n in range(30)]
    fates = Fates(str(tmp_path / "fates"), 1)
    gone = [{"place": place_of[ids[n]], "reason": "duplicate.near", "duplicate_of": "x", "similarity": 1.0} for n in dropped]
    write_fates(pa.Table.from_pylist(gone, FATE), fates, 0, len(bundles))
    made = find_repeated(bundles, [fates], config, str(tmp_path / "work"))
    found, total = {}, 0
    for bundle in bundles:
        cut = read_cuts(made, bundle.number)
        for number, piece in enumerate(bundle.pieces):
            documents, num_cut = cut_documents(read_piece(piece.text), cut, number)
            total += num_cut
            found |= {row["id"]: row for row in documents.to_pylist()}
    want = by_definition(texts, ids, dropped, most)
    assert total > 5
    for n, text in enumerate(texts):
        row = found[ids[n]]
        if n in dropped:
            assert row["text"] == text
        elif want[n]:
            assert (row["text"], row["reason"]) == (want[n], None)
            assert (row["num_chars"], row["num_words"]) == (len(want[n]), len(want[n].split())) or want[n] == text
        else:
            assert (row["text"], row["reason"], row["num_chars"]) == (None, EMPTIED, 0)
            assert row["excerpt"] == " ".join(text.split())[:200]
    assert any(not text for text in want.values()) or seed % 3


def test_a_notice_under_every_document_fills_no_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(paragraphs, "in_tasks", here)
    bundles = bundled(in_pieces([f"{NOTICE}\n\nNumber {n}" for n in range(40)], [20], tmp_path), [], 1)
    config = dataclasses.replace(CONFIG, paragraph_documents=3, task_bytes=1 << 20)
    made = find_repeated(bundles, [], config, str(tmp_path / "work"))
    assert gather(str(tmp_path / "work" / "paragraphs"), [0, 1], 0, paragraphs._PARAGRAPH).num_rows == 2 * 3
    assert sum(len(rows) for bundle in bundles for rows in read_cuts(made, bundle.number).values()) == 37


@given(st.lists(PARAGRAPH, max_size=8), st.lists(st.sampled_from(["\n\n", "\n \t\n", "\n\n\n\n"]), min_size=8, max_size=8))
def test_a_text_loses_the_paragraphs_named_and_nothing_else(parts, blanks):
    text = "".join(part + blank for part, blank in zip(parts, blanks, strict=False))
    key = next(k for k in paragraph_keys(NOTICE) if k is not None)
    left, cut = cut_text(text, {key})
    assert cut == sum(part.lower() == NOTICE.lower() for part in parts)
    words = [canonical(part) for part in parts if part.lower() != NOTICE.lower()]
    assert canonical(left) == " ".join(w for w in words if w)
    assert (cut > 0) or left == text


def test_short_paragraphs_are_never_cut():
    assert paragraph_keys("one two three four\n\n---\n\none two three four five") == [
        None,
        None,
        paragraph_keys("one two three four five")[0],
    ]


def test_code_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(paragraphs, "in_tasks", here)
    pieces = in_pieces([NOTICE] * 9, [], tmp_path)
    table = read_piece(pieces[0].text)
    write_piece(table.set_column(table.column_names.index("kind"), "kind", pa.array(["code"] * 5 + ["prose"] * 4)), pieces[0].text)
    config = dataclasses.replace(CONFIG, paragraph_documents=3)
    made = find_repeated(bundled(pieces, [], 1), [], config, str(tmp_path / "work"))
    assert sum(map(len, read_cuts(made, 0).get(0, {}).values())) == 1
