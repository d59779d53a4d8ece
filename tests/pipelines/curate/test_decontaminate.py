"""Documents and evaluation sets: what shares a passage goes, or is freed of it, and what was hit is told."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.curate.decontaminate import common_grams, decontaminate, figures, freed, summary
from pipelines.curate.document import DOCUMENT
from pipelines.curate.evaluations import Evaluations, Item
from pipelines.curate.normalize import canonical

QUESTION = "how many eggs does the tern lay in a year if it lays one egg each spring"
OTHER = "which of the two poles has more ice in the month of june and why is that"


def documents_of(texts):
    rows = [{"id": f"{i:032x}", "text": t, "reason": None if t else "short", "num_chars": len(t or ""), "num_words": len((t or "").split())}
            for i, t in enumerate(texts)]  # fmt: skip
    return pa.Table.from_pylist(rows, DOCUMENT)


@pytest.fixture
def index():
    return Evaluations([Item("birds", "0", (QUESTION,)), Item("poles", "7", (OTHER, "because it is winter there"))])


def test_a_document_with_a_passage_is_dropped_for_its_set_and_told(index):
    texts = [f"Quiz.\n{OTHER.upper()}?\nThat is it.", "nothing here", None, f"{QUESTION} and {OTHER}", f"{QUESTION[:40]} ..."]
    found = decontaminate(documents_of(texts), index, cut=False)
    assert found["reason"].to_pylist() == ["contaminated.poles", None, "short", "contaminated.birds", None]
    assert found["text"].to_pylist() == [None, "nothing here", None, None, f"{QUESTION[:40]} ..."]
    assert found["excerpt"].to_pylist()[0] == OTHER
    assert [[(hit["set"], hit["item"], hit["cut"]) for hit in hits] for hits in found["hits"].to_pylist()] == [
        [("poles", "7", False)], [], [], [("birds", "0", False), ("poles", "7", False)], [],
    ]  # fmt: skip
    assert found.schema.names == [*DOCUMENT.names, "hits"]


def test_with_cut_the_lines_go_and_a_document_that_is_mostly_passage_too(index):
    around = "\n".join(f"Line {i} has some words of its own." for i in range(6))
    texts = [f"{around}\nThe question: {QUESTION}?\n{around}", f"Short.\n{QUESTION}\nEnd."]
    found = decontaminate(documents_of(texts), index, cut=True)
    kept, dropped = found.to_pylist()
    assert kept["text"] == f"{around}\n{around}"
    assert (kept["reason"], kept["num_chars"], kept["num_words"]) == (None, len(kept["text"]), len(kept["text"].split()))
    assert [hit["cut"] for hit in kept["hits"]] == [True]
    assert (dropped["text"], dropped["reason"], dropped["hits"][0]["cut"]) == (None, "contaminated.birds", False)


@given(st.lists(st.sampled_from(["a", "b", "c", "\n", "\n"]), max_size=40), st.lists(st.sampled_from("abc"), min_size=3, max_size=8))
def test_what_is_left_after_cutting_shares_nothing(words, item):
    """Also where the lines around a cut one come together."""
    index = Evaluations([Item("s", "0", (" ".join(item),))], ngram=3, shortest=3)
    text = " ".join(words)
    left = freed(text, index)
    if left is not None:
        assert not index.shared([canonical(left)])[0]
        assert len(canonical(left).split()) * 2 >= len(canonical(text).split())
        assert set(left.split("\n")) <= {*text.split("\n"), ""}


def test_common_passages_can_be_ignored(index):
    table = documents_of([f"{QUESTION} {i}" for i in range(5)] + [OTHER])
    counted = [index.documents_by_gram(part["text"].to_pylist()) for part in (table.slice(0, 2), table.slice(2))]
    common = common_grams(counted, 4)
    found = decontaminate(table, index.without(common), cut=False)
    assert found["reason"].to_pylist() == [None] * 5 + ["contaminated.poles"]
    assert common_grams(counted, 5) == frozenset()


def test_what_was_hit_adds_up(index):
    found = decontaminate(documents_of([OTHER, f"x {OTHER} y", QUESTION, "clean"]), index, cut=False)
    hits = [hit for each in found["hits"].to_pylist() for hit in each]
    told = summary(index, hits)
    assert told == {
        "birds": {"items": 1, "too_short": 0, "items_hit": 1, "documents_hit": 1},
        "poles": {"items": 1, "too_short": 0, "items_hit": 1, "documents_hit": 2},
    }
    drawn = figures(told, hits)
    assert drawn["contaminated items"]["rows"][0] == ["poles", "7", 2, 0, OTHER]
    assert drawn["contaminated"]["groups"]["found in the corpus"] == {"birds": 1.0, "poles": 1.0}
    assert json.dumps(drawn)


def test_items_too_short_to_look_for_are_counted():
    told = summary(Evaluations([Item("s", "0", ("who wrote hamlet", "shakespeare")), Item("s", "1", (QUESTION,))]), [])
    assert told["s"]["too_short"] == 1


def test_documents_do_not_depend_on_their_neighbours(index):
    texts = [QUESTION, "plain words", OTHER, f"naïve 日本 {QUESTION}", "x"] * 3
    order = random.Random(0).sample(range(len(texts)), len(texts))
    whole = decontaminate(documents_of(texts), index, cut=False)["reason"].to_pylist()
    mixed = decontaminate(documents_of([texts[i] for i in order]), index, cut=False)["reason"].to_pylist()
    assert [whole[i] for i in order] == mixed
