"""Fates: each finds its bundle, and of several the first counts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.curate.bundle import bundle_of, places
from pipelines.curate.fates import FATE, Fates, read_fates, write_fates

PLACE = st.builds(lambda b, p, r: int(places(b, p, np.array([r]))[0]), st.integers(0, 2), st.integers(0, 1), st.integers(0, 3))
TOLD = st.lists(st.lists(PLACE, unique=True, max_size=6), min_size=1, max_size=4)


def rows(told, reason):
    return pa.Table.from_pylist([{"place": p, "reason": reason, "duplicate_of": None, "similarity": None} for p in told], FATE)


@given(TOLD, TOLD)
def test_a_document_has_the_first_fate_it_was_given(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("fates")
    sources, want = [], {}
    for name, files in (("first", first), ("second", second)):
        sources.append(Fates(str(folder / name), len(files)))
        for number, told in enumerate(files):
            write_fates(rows(told, f"{name} {number}"), sources[-1], number, 3)
            for place in told:
                want.setdefault(place, f"{name} {number}")
    for bundle in range(3):
        found = read_fates(sources, bundle)
        mine = {place: reason for place, reason in want.items() if bundle_of(np.array([place]))[0] == bundle}
        assert list(zip(found["place"].to_pylist(), found["reason"].to_pylist(), strict=True)) == sorted(mine.items())


def test_without_sources_nobody_has_a_fate():
    assert read_fates([], 3).num_rows == 0
    assert read_fates([Fates("/no/such/folder", 0)], 3).schema == FATE
