"""The shelf: each candidate's set as it would be made from its text, however little of it may be held at a time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipelines.curate.bundle import bundle_of, bundled, places
from pipelines.curate.label import LABEL, Labels
from pipelines.curate.minhash import shingles
from pipelines.curate.normalize import canonical
from pipelines.curate.shards import gather, scatter
from pipelines.curate.shelf import Shelf, shelve, shelved_schema
from tests.pipelines.curate.corpora import CONFIG, id_of, in_pieces, texts_like

NUM_GROUPS = 3


@pytest.fixture
def shelved(tmp_path):
    """All documents of a corpus but two as candidates, in components of two, dealt to three groups."""
    texts, cuts = texts_like(5), [3, 9, 10, 25]
    bundles = bundled(in_pieces(texts, cuts, tmp_path), [], 2000)
    text_of = {}
    for bundle in bundles:
        for number, piece in enumerate(bundle.pieces):
            for row in range(piece.num_documents):
                text_of[int(places(bundle.number, number, np.array([row]))[0])] = texts[len(text_of)]
    place = np.array(sorted(text_of)[:-2], np.int64)
    labels = Labels(str(tmp_path / "labels"), 1, place.size, 0, 0)
    scatter(pa.table([place, place[np.arange(place.size) // 2 * 2]], LABEL), bundle_of(place), len(bundles), labels.folder, 0)
    for bundle in bundles:
        shelve(bundle, labels, NUM_GROUPS, CONFIG, str(tmp_path))
    groups = [gather(f"{tmp_path}/shelf", range(len(bundles)), group, shelved_schema(CONFIG.bands)) for group in range(NUM_GROUPS)]
    return str(tmp_path / "shelf"), groups, {p: text_of[p] for p in place.tolist()}


def shelf_of(folder, group, most_bytes):
    columns = (bundle_of(group["place"].to_numpy()), group["offset"].to_numpy(), group["num_grams"].to_numpy())
    return Shelf(folder, *columns, most_bytes)


def test_every_candidate_is_in_one_group_with_its_component(shelved):
    _, groups, text_of = shelved
    found = [place for group in groups for place in group["place"].to_pylist()]
    assert sorted(found) == sorted(text_of)
    homes = {}
    for number, group in enumerate(groups):
        for component in group["component"].to_pylist():
            assert homes.setdefault(component, number) == number
    assert len(set(homes.values())) == NUM_GROUPS


@pytest.mark.parametrize("most_bytes", [1 << 26, 2000, 1])
def test_a_set_is_that_of_the_text_however_little_is_held(shelved, most_bytes):
    folder, groups, text_of = shelved
    for group in groups:
        shelf = shelf_of(folder, group, most_bytes)
        sizes = group["num_grams"].to_numpy()
        for number in [*range(sizes.size), *reversed(range(sizes.size))]:
            if sizes[number]:
                text = text_of[group["place"][number].as_py()]
                want = np.unique(shingles([canonical(text)], CONFIG.ngram)[0])
                assert shelf(number).tolist() == want.tolist()
        if most_bytes > 1:
            assert sum(s.nbytes for s in shelf._held.values()) <= most_bytes
        else:
            assert len(shelf._held) == 1


def test_what_fits_is_read_once_for_each_bundle(shelved):
    folder, groups, _ = shelved
    for group in groups:
        shelf = shelf_of(folder, group, 1 << 26)
        before = shelf.num_reads
        assert before <= len(set(bundle_of(group["place"].to_numpy()).tolist()))
        for number in np.flatnonzero(group["num_grams"].to_numpy()).tolist():
            shelf(number)
        assert shelf.num_reads == before


def test_documents_without_words_have_no_set(shelved):
    _, groups, text_of = shelved
    for group in groups:
        for row in group.to_pylist():
            assert (row["num_grams"] == 0) == (canonical(text_of[row["place"]]) == "")


def test_ids_are_those_of_the_documents(shelved):
    _, groups, text_of = shelved
    number = {place: n for n, place in enumerate(sorted(text_of))}
    for group in groups:
        for row in group.to_pylist():
            assert row["id"] == id_of("", number[row["place"]])
