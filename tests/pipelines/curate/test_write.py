"""Writing: what is staged is what is written, every row once with its fate, and what is counted is what was written."""

from __future__ import annotations

import dataclasses
import random
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate.bundle import Piece, bundled, places
from pipelines.curate.config import CurateConfig
from pipelines.curate.document import DOCUMENT, DROPPED, KEPT
from pipelines.curate.fates import FATE, Fates, write_fates
from pipelines.curate.normalize import canonical
from pipelines.curate.paragraphs import EMPTIED, Cuts, paragraph_keys
from pipelines.curate.piece import read_piece
from pipelines.curate.shards import scatter
from pipelines.curate.signature import fixed_bytes
from pipelines.curate.steps import drop_by_quality, normalise, sign, stage
from pipelines.curate.write import write_bundle

CONFIG = CurateConfig(output="unused", bands=3, rows=2)
WORDS = ["the", "of", "and", "tern", "sea", "ice", "wind", "flies", "north", "south", "egg", "fish", "nest", "wing", "storm", "coast"]
PROSE = [" ".join(" ".join(random.Random(f"{n} {i}").choices(WORDS, k=9)).capitalize() + "." for i in range(12)) for n in range(3)]
CODE = "\n\n".join(f"def area_{name}(width, height):\n    return width * height + offset_{name}" for name in ("field", "court", "table"))
TEXTS = st.lists(st.tuples(st.none() | st.sampled_from([*PROSE, CODE, "short"]), st.sampled_from(["code", "prose"])), min_size=1)


def staged(cases, folder):
    """A bundle of one piece: (text, kind) as the steps judge them; None is a record that could not be read."""
    rows = [
        {
            "id": f"{n:04x}{len(cases):028x}", "text": text, "source": f"{n}.md", "ordinal": n, "kind": kind, "format": "md",
            "num_chars": len(text or ""), "num_words": 0,
            "reason": "unreadable.json" if text is None else None, "excerpt": "not JSON" if text is None else None,
        }
        for n, (text, kind) in enumerate(cases)
    ]  # fmt: skip
    table = sign(drop_by_quality(normalise(pa.Table.from_pylist(rows, DOCUMENT)), "auto"), CONFIG)
    made = stage(table, str(folder / "staged"), CONFIG).to_pylist()[0]
    (bundle,) = bundled([Piece(made["piece"], made["signatures"], made["num_documents"], made["num_chars"])], [], 1)
    return bundle


def near(rows, folder):
    """These rows of the piece are near-duplicates of document x."""
    place = places(0, 0, np.array(rows, np.int64))
    told = [{"place": int(p), "reason": "duplicate.near", "duplicate_of": "x", "similarity": 0.9} for p in place]
    write_fates(pa.Table.from_pylist(told, FATE), Fates(str(folder / "fates"), 1), 0, 1)
    return [Fates(str(folder / "fates"), 1)]


def written(folder):
    return (
        pa.concat_tables([schema.empty_table(), *map(read_piece, map(str, sorted(folder.glob(f"{part}/*"))))]).to_pylist()
        for part, schema in (("kept", KEPT), ("dropped", DROPPED))
    )


@settings(max_examples=25, deadline=None)
@given(cases=TEXTS, data=st.data())
def test_what_is_written_is_every_row_once_and_the_counts_say_so(tmp_path_factory, cases, data):
    folder = tmp_path_factory.mktemp("write")
    bundle = staged(cases, folder)
    left = read_piece(bundle.pieces[0].signatures)["row"].to_pylist()
    repeated = data.draw(st.lists(st.sampled_from(left), unique=True)) if left else []
    counted = write_bundle(bundle, near(repeated, folder), None, None, CONFIG, str(folder))
    kept, dropped = written(folder)
    ids = read_piece(bundle.pieces[0].text)["id"].to_pylist()
    assert sorted(row["id"] for row in chain(kept, dropped)) == ids
    assert [row["id"] for row in kept] == [ids[row] for row in left if row not in repeated]
    assert sum(row["documents"] for row in counted) == len(cases)
    assert sum(row["documents"] for row in counted if not row["reason"]) == len(kept)
    assert sum(row["num_bytes"] for row in counted if not row["reason"]) == sum(len(row["text"].encode()) for row in kept)
    for row in dropped:
        alike = ids.index(row["id"]) in repeated
        assert row["reason"] == ("duplicate.near" if alike else row["reason"])
        assert (row["duplicate_of"], row["similarity"]) == (("x", 0.9) if alike else (None, None))
        assert row["excerpt"] is not None
    samples = [sample for row in counted for sample in row["samples"]]
    for reason in {row["reason"] for row in dropped}:
        here = sorted(d["id"] for d in dropped if d["reason"] == reason)
        assert [sample["id"] for sample in samples if sample["reason"] == reason] == here[:20]


def test_signatures_stand_row_by_row_for_the_kept(tmp_path):
    bundle = staged([(PROSE[2], "prose"), ("short", "prose"), (CODE, "code"), (PROSE[0], "prose")], tmp_path)
    write_bundle(bundle, near([2], tmp_path), None, None, CONFIG, str(tmp_path))
    signed, kept = (read_piece(f"{tmp_path}/{place}/00000.parquet") for place in ("signatures", "kept"))
    assert signed["id"].to_pylist() == kept["id"].to_pylist()
    assert signed["row"].to_pylist() == [0, 1]
    before = {row["id"]: row for row in read_piece(bundle.pieces[0].signatures).to_pylist()}
    assert all(row | {"row": 0} == before[row["id"]] | {"row": 0} for row in signed.to_pylist())


def test_what_was_cut_is_signed_anew_and_what_was_emptied_is_dropped(tmp_path):
    notice = "Permission is hereby granted to any person who reads this."
    bundle = staged([(f"{PROSE[0]}\n\n{notice}", "prose"), (PROSE[1], "prose"), (PROSE[2], "prose")], tmp_path)
    place = places(0, 0, np.array([0, 2]))
    keys = [key for text in (notice, PROSE[2]) for key in paragraph_keys(text)]
    schema = pa.schema({"place": pa.int64(), "key": pa.binary(16)})
    cuts = pa.table([place, fixed_bytes(keys, 16)], schema)
    for name, own in (("cuts", cuts.slice(0, 1)), ("sure", cuts.slice(1))):
        scatter(own, np.zeros(1, np.int64), 1, str(tmp_path / name), 0)
    counted = write_bundle(bundle, [], Cuts(str(tmp_path / "cuts"), 1, str(tmp_path / "sure")), None, CONFIG, str(tmp_path))
    kept, dropped = written(tmp_path)
    assert [row["text"] for row in kept] == [PROSE[0], PROSE[1]]
    assert [(row["reason"], row["excerpt"][:9]) for row in dropped] == [(EMPTIED, PROSE[2][:9])]
    assert sum(row["paragraphs_cut"] for row in counted) == 2
    signed = read_piece(f"{tmp_path}/signatures/00000.parquet").to_pylist()
    assert [row["num_chars"] for row in signed] == [len(row["text"]) for row in kept]
    again = sign(pa.Table.from_pylist([{"text": row["text"]} for row in kept], DOCUMENT), CONFIG)
    assert [row["digest"] for row in signed] == again["digest"].to_pylist()
    assert canonical(kept[0]["text"]) == canonical(PROSE[0])


@pytest.mark.parametrize("first_piece", [0, 41])
def test_files_are_named_after_their_piece_and_none_is_empty(tmp_path, first_piece):
    bundle = dataclasses.replace(staged([(text, "prose") for text in PROSE], tmp_path), first_piece=first_piece)
    write_bundle(bundle, [], None, None, CONFIG, str(tmp_path))
    assert [file.name for file in (tmp_path / "kept").iterdir()] == [f"{first_piece:05d}.parquet"]
    assert not (tmp_path / "dropped").exists()
    once = (tmp_path / "kept" / f"{first_piece:05d}.parquet").read_bytes()
    write_bundle(bundle, [], None, None, CONFIG, str(tmp_path))
    assert (tmp_path / "kept" / f"{first_piece:05d}.parquet").read_bytes() == once
    write_bundle(bundle, near([0, 1, 2], tmp_path), None, None, CONFIG, str(tmp_path / "other"))
    assert sorted(place.name for place in (tmp_path / "other").iterdir()) == ["dropped"]
