"""Labels: the connected components of the buckets, the same whichever way they are found and however the work is dealt."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.curate import label as label_module
from pipelines.curate.bundle import Piece, bundled, places
from pipelines.curate.components import bucket_keys, components, star_edges
from pipelines.curate.config import CurateConfig
from pipelines.curate.label import LABEL, label
from pipelines.curate.piece import write_piece
from pipelines.curate.shards import gather
from pipelines.curate.signature import fixed_bytes, signature_schema
from tests.pipelines.curate.corpora import here

CONFIG = CurateConfig(output="unused", bands=2)
DOCUMENT = st.tuples(st.lists(st.integers(0, 9), min_size=2, max_size=2), st.integers(0, 3), st.booleans())
PIECES = st.lists(st.lists(DOCUMENT, min_size=1, max_size=8), min_size=1, max_size=5)


def piece_of(documents, folder, name):
    """A piece by its signatures alone: a label needs no text."""
    count = len(documents)
    columns = {
        "row": range(count),
        "id": [f"{name} {row}" for row in range(count)],
        "claim": [0.0] * count,
        "num_chars": [10] * count,
        "digest": fixed_bytes([digest.to_bytes(16, "little") for _, digest, _ in documents], 16),
        "bands": fixed_bytes([np.array(bands, np.uint64).tobytes() for bands, _, _ in documents], 16),
        "has_words": [worded for _, _, worded in documents],
    }
    schema = signature_schema(2)
    uri = f"{folder}/{name}.signatures"
    write_piece(pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}), uri)
    return Piece("unused", uri, count, 10 * count)


def by_hand(groups, num_new):
    """Components of everything at once: {(bundle, row): (bundle, row) of the least}, a bundle for each piece."""
    rows = [(number, row, *document) for number, group in enumerate(groups) for row, document in enumerate(group)]
    place = np.array([places(number, 0, np.array([row]))[0] for number, row, *_ in rows], np.int64)
    digest = np.frombuffer(b"".join(d.to_bytes(16, "little") for *_, d, _ in rows), "V16")
    keys = bucket_keys(np.array([b for _, _, b, _, _ in rows], np.uint64), digest, np.array([w for *_, w in rows]))
    newcomer = np.array([number < num_new for number, *_ in rows])
    found = components(*star_edges(keys.ravel(), np.repeat(place, 2), np.repeat(newcomer, 2)))
    return dict(zip(*map(np.ndarray.tolist, found), strict=True))


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PIECES, st.lists(st.lists(DOCUMENT, min_size=1, max_size=8), max_size=2), st.sampled_from([64, 256, 1 << 20]))
def test_every_way_gives_the_components_of_all(tmp_path_factory, monkeypatch, new, old, task_bytes):
    monkeypatch.setattr(label_module, "in_tasks", here)
    folder = str(tmp_path_factory.mktemp("label"))
    pieces = [[piece_of(group, folder, f"{era}-{n}") for n, group in enumerate(groups)] for era, groups in (("new", new), ("old", old))]
    bundles = bundled(pieces[0], [[piece] for piece in pieces[1]], 1)
    want = by_hand([*new, *old], len(new))
    for way, driver_bytes in (("driver", 1 << 30), ("edges", 16 * max(1, 2 * sum(map(len, [*new, *old])))), ("rounds", 1)):
        config = dataclasses.replace(CONFIG, driver_bytes=driver_bytes, task_bytes=task_bytes)
        made = label(bundles, config, f"{folder}/{way}")
        tables = [gather(made.folder, range(made.num_files), bundle.number, LABEL) for bundle in bundles]
        found = [(p, c) for table in tables for p, c in zip(*(table[name].to_pylist() for name in LABEL.names), strict=True)]
        assert dict(found) == want, way
        assert len(found) == made.num_documents == len(want)
        assert (made.rounds > 0) <= (way == "rounds")


@pytest.mark.parametrize("length", [40])
def test_a_long_chain_across_many_tasks_settles_in_few_rounds(tmp_path, monkeypatch, length):
    """Document i shares a value with i+1 only; each is in a bundle of its own."""
    monkeypatch.setattr(label_module, "in_tasks", here)
    order = np.random.default_rng(0).permutation(length).tolist()
    pieces = [piece_of([([100 + n // 2, 200 + (n + 1) // 2], n, True)], str(tmp_path), str(n)) for n in order]
    config = dataclasses.replace(CONFIG, driver_bytes=1, task_bytes=256)
    made = label(bundled(pieces, [], 1), config, str(tmp_path / "work"))
    assert made.num_documents == length
    components_found = {
        c for number in range(length) for c in gather(made.folder, range(made.num_files), number, LABEL)["component"].to_pylist()
    }
    assert components_found == {0}
    assert made.rounds <= 8


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda pair: pair[0] > pair[1]), max_size=20), max_size=6))
def test_few_more_edges_are_held_than_there_are_documents(parts):
    """However many times the same two are joined: what is held connects the same."""
    arrays = [tuple(np.array(part, np.int64).reshape(-1, 2).T) for part in parts]
    greater, least, total = label_module._spanning(arrays, 10)
    assert total == sum(map(len, parts))
    assert greater.size <= 20
    together = (np.concatenate([np.zeros(0, np.int64), *(part[end] for part in arrays)]) for end in (0, 1))
    assert [x.tolist() for x in components(greater, least)] == [x.tolist() for x in components(*together)]
