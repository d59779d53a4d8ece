"""The steps: no row added or lost, a verdict takes the text and leaves an excerpt, what is staged is what is written."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate.config import CurateConfig
from pipelines.curate.document import DOCUMENT
from pipelines.curate.minhash import band_values, shingles
from pipelines.curate.normalize import canonical, clean
from pipelines.curate.piece import read_piece
from pipelines.curate.quality import judge
from pipelines.curate.signature import signature_schema, values_of
from pipelines.curate.steps import SUMMARY, drop_by_quality, normalise, sign, stage, timed

CONFIG = CurateConfig(output="unused", bands=3, rows=2)
WORDS = ["the", "of", "and", "tern", "sea", "ice", "wind", "flies", "north", "south", "egg", "fish", "nest", "wing", "storm", "coast"]
PROSE = [" ".join(" ".join(random.Random(f"{n} {i}").choices(WORDS, k=9)).capitalize() + "." for i in range(12)) for n in range(3)]
CODE = "\n\n".join(f"def area_{name}(width, height):\n    return width * height + offset_{name}" for name in ("field", "court", "table"))
TEXTS = st.lists(st.tuples(st.none() | st.sampled_from([*PROSE, CODE, "a\r\nb", "", "short\x00"]), st.sampled_from(["code", "prose"])))
EQUAL_APART_FROM_CASE = ["The tern, it flies over the sea", "the TERN it flies; over the sea!"]


def documents(texts, kinds=None):
    """As `read_files` makes them; a text of None is a record that could not be read."""
    kinds = kinds or ["prose"] * len(texts)
    rows = [
        {
            "id": f"{n:04x}{0:028x}", "text": text, "source": f"{n}.md", "ordinal": n, "kind": kinds[n], "format": "md",
            "num_chars": len(text or ""), "num_words": 0,
            "reason": "unreadable.json" if text is None else None, "excerpt": "not JSON" if text is None else None,
        }
        for n, text in enumerate(texts)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, DOCUMENT)


def staged(texts, folder, kinds=None):
    table = sign(drop_by_quality(normalise(documents(texts, kinds)), "auto"), CONFIG)
    return stage(table, str(folder), CONFIG).to_pylist()[0]


@settings(max_examples=40)
@given(TEXTS, st.sampled_from(["auto", "web", "code"]))
def test_a_step_judges_each_row_and_moves_none(cases, profile):
    texts, kinds = [text for text, _ in cases], [kind for _, kind in cases]
    before = documents(texts, kinds)
    after = drop_by_quality(normalise(before), profile)
    assert after.schema == DOCUMENT
    for name in ("id", "source", "ordinal", "format"):
        assert after[name] == before[name]
    for text, kind, row in zip(texts, kinds, after.to_pylist(), strict=True):
        if text is None:
            assert (row["text"], row["reason"], row["excerpt"], row["num_words"]) == (None, "unreadable.json", "not JSON", 0)
            continue
        rules = {"auto": {"code": "code", "prose": "web"}[kind]}.get(profile, profile)
        (reason,), (num_words,) = judge([clean(text)], rules)
        assert (row["reason"], row["num_words"], row["num_chars"]) == (reason, num_words, len(clean(text)))
        assert row["text"] == (clean(text) if reason is None else None)
        assert row["excerpt"] == (None if reason is None else " ".join(clean(text).split())[:200])


def test_the_law_above_has_both_verdicts():
    assert judge([*PROSE, ""], "web")[0] == [None, None, None, "gopher.short_document"]
    assert judge([CODE], "code")[0] == [None]


def test_signatures_are_those_of_each_text_alone():
    signed = sign(documents([PROSE[0], None, "!?", "two words", *EQUAL_APART_FROM_CASE, "?!"]), CONFIG).to_pylist()
    digests, bands = [row["digest"] for row in signed], [row["bands"] for row in signed]
    assert digests[4] == digests[5]
    assert bands[4] == bands[5]
    assert (digests[1], bands[1]) == (None, None), "what is dropped has no signature"
    assert bands[2] is bands[6] is None, "nothing to compare without words"
    assert len({digests[i] for i in (0, 2, 3, 4, 6)}) == 5, "without words only the same text is a copy"
    own = band_values(shingles([canonical(PROSE[0])], CONFIG.ngram)[0], bands=CONFIG.bands, rows=CONFIG.rows, seed=CONFIG.seed)
    assert bands[0] == own.tobytes()


def test_a_staged_piece_is_described_by_its_summary(tmp_path):
    texts = [PROSE[0], None, "too short", "日本" + PROSE[1], CODE]
    summary = staged(texts, tmp_path, ["prose"] * 4 + ["code"])
    piece = read_piece(summary["piece"])
    assert piece.schema == DOCUMENT
    assert summary["documents_in"] == piece.num_rows == 5
    signed = read_piece(summary["signatures"])
    assert signed.schema == signature_schema(CONFIG.bands)
    assert signed["row"].to_pylist() == [0, 3, 4]
    assert [piece["id"][row].as_py() for row in signed["row"].to_pylist()] == signed["id"].to_pylist()
    assert [len(piece["text"][row].as_py()) for row in signed["row"].to_pylist()] == signed["num_chars"].to_pylist()
    assert signed["claim"].to_pylist() == [-n for n in signed["num_chars"].to_pylist()], "the longest first"
    assert signed["has_words"].to_pylist() == [True] * 3
    assert summary["num_bytes"] == sum(len(text.encode()) for text in piece["text"].drop_null().to_pylist())
    assert (summary["num_documents"], summary["num_chars"]) == (3, sum(signed["num_chars"].to_pylist()))
    assert dict(summary["reasons"]) == {"unreadable.json": 1, "gopher.short_document": 1}
    assert summary["unreadable"] == ["1.md: not JSON"]


def test_a_document_without_words_holds_its_place_among_the_signatures(tmp_path):
    table = sign(documents(["!!", PROSE[0], "??"]), CONFIG)  # no rule lets such texts through today
    signed = read_piece(stage(table, str(tmp_path), CONFIG).to_pylist()[0]["signatures"])
    bands = values_of(signed["bands"], np.uint64)
    assert signed["has_words"].to_pylist() == [False, True, False]
    assert bands[1].all()
    assert not bands[[0, 2]].any()


def test_a_task_that_is_run_again_writes_the_same_piece(tmp_path):
    once, again, other = (
        staged(PROSE, tmp_path),
        staged(PROSE, tmp_path),
        stage(sign(documents(PROSE).slice(1), CONFIG), str(tmp_path), CONFIG),
    )
    assert once == again
    assert other["piece"][0].as_py() != once["piece"]
    assert len(list(tmp_path.iterdir())) == 4


def test_pieces_sort_as_they_were_read(tmp_path):
    table = sign(documents(PROSE[:1] * 12), CONFIG)
    same = table.set_column(table.column_names.index("source"), "source", pa.array(["a.jsonl"] * 12))
    firsts = [stage(same.slice(n, 1), str(tmp_path), CONFIG)["first"][0].as_py() for n in range(12)]
    assert firsts == sorted(firsts), "10 comes after 9"


@pytest.mark.parametrize("cut", [lambda table: table, lambda table: iter([table.slice(0, 1), table.slice(1)])])
def test_seconds_of_each_step_arrive_in_the_summary(tmp_path, cut):
    """Whether a step makes one table or several, its seconds are shared out and summed again."""
    made = [sign(table, CONFIG) for table in timed("cut", cut, documents(PROSE))]
    assert sum(table.num_rows for table in made) == 3
    summaries = [stage(table, str(tmp_path), CONFIG) for table in made]
    assert all(summary.schema == SUMMARY for summary in summaries)
    assert all([name for name, seconds in summary["seconds"][0].as_py() if seconds > 0] == ["cut"] for summary in summaries)
    assert all(read_piece(s["piece"][0].as_py()).schema == DOCUMENT for s in summaries), "seconds are not part of a document"
    (empty,) = timed("cut", partial(pa.Table.slice, length=0), documents(PROSE))
    assert empty.num_rows == 0
