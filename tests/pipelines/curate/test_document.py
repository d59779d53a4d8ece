"""A document's id and its columns: equal on a retry, unlike for anything else; nothing lost between the schemas."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.curate.document import DOCUMENT, DROPPED, KEPT, MARKED, document_id, excerpt

SOURCE = st.text(st.sampled_from("a1:/\udcff"), max_size=6)  # file names may hold bytes that are no text
IDENTITY = st.tuples(SOURCE, st.integers(0, 120), st.binary(max_size=3) | st.sampled_from([b"1:", b":", b"12:a"]))


@given(IDENTITY, IDENTITY)
def test_ids_are_equal_just_where_source_ordinal_and_content_are(one, other):
    assert (document_id(*one) == document_id(*other)) == (one == other)
    assert len(document_id(*one)) == 32
    assert int(document_id(*one), 16) >= 0


def test_what_belongs_to_the_source_cannot_slip_into_the_ordinal_or_the_content():
    assert document_id("a:1", 2, b"") != document_id("a", 1, b"2:")
    assert document_id("a", 1, b"2:x") != document_id("a", 12, b":x")


@given(st.text(max_size=40).map(lambda text: 20 * text) | st.text(max_size=300))
def test_an_excerpt_is_the_beginning_on_one_short_line(text):
    short = excerpt(text)
    assert len(short) <= 200
    assert short == " ".join(short.split(" "))
    assert not set("\n\r\t\u2028") & set(short)
    assert " ".join(text.split()).startswith(short)
    assert short or not text[:400].strip()


def test_kept_and_dropped_hold_what_a_document_holds():
    """Same names and types as on the way; a dropped one has no text, a kept one no reason."""
    assert all(DOCUMENT.field(field.name) == field for field in KEPT if field not in MARKED)
    added = {"duplicate_of": pa.string(), "similarity": pa.float64(), "score": pa.float64()}
    assert {field.name: field.type for field in DROPPED} == {**{f.name: f.type for f in DOCUMENT if f.name in DROPPED.names}, **added}
    assert set(DOCUMENT.names) - set(KEPT.names) == {"date", "reason", "excerpt"}
    assert set(DOCUMENT.names) - set(DROPPED.names) == {"text", "date", "num_words"}
