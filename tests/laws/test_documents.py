"""Conservation of documents: what is read is kept or dropped with a reason, whatever it is and however it is cut.

Through the very functions that the tasks run, without Ray: thousands of small corpora in seconds.
"""

from __future__ import annotations

import json
import random
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate.account import balance
from pipelines.curate.bundle import Piece, bundled, places
from pipelines.curate.config import CurateConfig
from pipelines.curate.document import DROPPED, KEPT
from pipelines.curate.fates import FATE, Fates, write_fates
from pipelines.curate.piece import read_piece
from pipelines.curate.quality import judge
from pipelines.curate.reading import read_files
from pipelines.curate.steps import drop_by_quality, normalise, sign, stage, timed
from pipelines.curate.write import write_bundle

WORDS = "the of and tern sea ice wind flies north south year egg fish nest wing light storm coast island winter".split()  # noqa: SIM905


def prose(seed: int) -> str:
    """Twelve sentences of nine words that every quality rule lets through."""
    return " ".join(" ".join(random.Random(f"{seed} {i}").choices(WORDS, k=9)).capitalize() + "." for i in range(12))


GOOD = st.integers(0, 99).map(prose)
LINE = st.one_of(
    GOOD.map(lambda t: json.dumps({"text": t})),
    st.text(max_size=30).map(lambda t: json.dumps({"text": t})),
    st.sampled_from(["{broken", "[1]", '{"text": null}', '{"text": "\\ud800"}', "\x00"]),
)
CONFIG = CurateConfig(output="unused")


def through_the_steps(files, folder, fates):
    """Read, normalise, judge, sign, stage and write as the tasks do; `fates(ids)` names rows to drop as duplicates."""
    tables = read_files(files)
    chain = (normalise, partial(drop_by_quality, profile="auto"), partial(sign, config=CONFIG))
    for place, step in enumerate(chain):
        tables = [made for table in tables for made in timed(str(place), step, table)]
    summaries = [stage(table, str(folder / "staged"), CONFIG).to_pylist()[0] for table in tables]
    pieces = [Piece(s["piece"], s["signatures"], s["num_documents"], s["num_chars"]) for s in summaries]
    counted = []
    for bundle in bundled(pieces, [], 1):
        rows = np.array(fates(read_piece(bundle.pieces[0].signatures)["row"].to_pylist()), np.int64)
        fate = {"reason": "duplicate.near", "duplicate_of": "x", "similarity": 0.9}
        told = [fate | {"place": place} for place in places(bundle.number, 0, rows).tolist()]
        write_fates(pa.Table.from_pylist(told, FATE), Fates(str(folder / "fates"), 1), 0, len(pieces))
        counted += write_bundle(bundle, [Fates(str(folder / "fates"), 1)], None, None, CONFIG, str(folder))
    return summaries, counted


def test_the_law_is_not_about_nothing():
    assert sum(reason is None for reason in judge([prose(seed) for seed in range(100)], "web")[0]) > 80


@settings(deadline=None, max_examples=40)
@given(st.lists(LINE, min_size=1, max_size=25), st.integers(1, 4))
def test_documents_in_are_kept_plus_dropped(lines, every):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "a.jsonl").write_text("\n".join(lines))
        files = pa.table({"uri": [str(folder / "a.jsonl")], "format": ["jsonl"]})
        summaries, counted = through_the_steps(files, folder, lambda rows: rows[::every])
        documents_in = sum(s["documents_in"] for s in summaries)
        assert documents_in == sum(1 for line in lines if line.strip())
        if not documents_in:
            return
        counts = balance(documents_in, counted)
        kept = pa.concat_tables([KEPT.empty_table(), *(read_piece(str(f)) for f in folder.glob("kept/*"))])
        dropped = pa.concat_tables([DROPPED.empty_table(), *(read_piece(str(f)) for f in folder.glob("dropped/*"))])
        assert counts["kept"] == kept.num_rows
        assert sum(counts.values()) - documents_in == kept.num_rows + dropped.num_rows
        ids = kept["id"].to_pylist() + dropped["id"].to_pylist()
        assert len(set(ids)) == documents_in
        assert None not in dropped["reason"].to_pylist()
