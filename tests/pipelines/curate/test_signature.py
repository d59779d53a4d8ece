"""Signatures: claims to stay, and columns of fixed bytes as arrays."""

from __future__ import annotations

import doctest

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

import pipelines.curate.signature
from pipelines.curate.components import survivor_order
from pipelines.curate.config import CurateConfig
from pipelines.curate.document import DOCUMENT
from pipelines.curate.signature import SIGNATURE_FORM, claims, digests_of, fixed_bytes, signature_schema, values_of
from pipelines.curate.steps import sign


def test_the_worked_examples():
    assert doctest.testmod(pipelines.curate.signature).failed == 0


@pytest.mark.parametrize(("survivors", "first", "last"), [("longest", "b", "a"), ("best", "c", "b"), ("oldest", "a", "c")])
def test_who_goes_first_and_who_last(survivors, first, last):
    """What is not known goes last: a document without quality or date."""
    known = {"num_chars": [3, 9, 5], "quality": [0.2, None, 0.9], "date": [-7.0, 1e9, None]}
    order = survivor_order(np.zeros(3), np.array(claims(known, survivors)), np.array([b"a", b"b", b"c"]))
    assert ("abc"[order[0]], "abc"[order[-1]]) == (first, last)


@given(st.lists(st.lists(st.integers(0, (1 << 64) - 1), min_size=2, max_size=2), max_size=9), st.integers(0, 3), st.booleans())
def test_fixed_bytes_come_back_as_numbers(rows, cut, chunks):
    column = fixed_bytes([np.array(row, np.uint64).tobytes() for row in rows], 16)
    table = pa.chunked_array([column.slice(0, cut), column.slice(cut)] if chunks else [column])
    assert values_of(table, np.uint64).tolist() == rows
    assert values_of(table.slice(cut), np.uint64).tolist() == rows[cut:]
    assert digests_of(table).tobytes() == b"".join(np.array(row, np.uint64).tobytes() for row in rows)


def test_the_schema_holds_as_many_bands_as_there_are():
    assert signature_schema(3).field("bands").type.byte_width == 24


def test_signatures_are_what_earlier_corpora_hold():
    """If this fails, by a change of ours or of numpy's: raise SIGNATURE_FORM, so that `--against` refuses what cannot be compared."""
    text = "The Tern's naïve ﬂight: 大きい x_1, über 30,000 km — and back."
    (row,) = sign(pa.Table.from_pylist([{"text": text}], DOCUMENT), CurateConfig(output="unused")).to_pylist()
    told = (SIGNATURE_FORM, row["digest"].hex(), xxhash.xxh3_64_hexdigest(row["bands"]))
    assert told == (1, "68bfa48ec85e0d46714b19a8d00b47a3", "b9a57c199e827463")
