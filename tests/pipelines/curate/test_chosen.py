"""Evaluation sets, selection and order in a whole run of curation: every document accounted for, the same in any pieces."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.curate.bundle import places
from pipelines.curate.chosen import NOT_SELECTED, with_marks
from pipelines.curate.config import CurateConfig
from pipelines.curate.document import MARKED
from pipelines.curate.flow import curate

SEA = ["tern", "wave", "gull", "salt", "wind", "cliff", "nest", "tide", "foam", "sail"]
CITY = ["tram", "street", "lamp", "square", "clock", "bridge", "crowd", "shop", "tower", "rain"]
QUESTION = "How many fish does a tern that dives nine times an hour catch in a day of fourteen hours?"


def text_of(number):
    """Prose of 60 to 90 words that no quality rule drops; every fourth is about the sea."""
    pick = random.Random(number)
    words = [
        pick.choice((SEA if number % 4 == 0 else CITY) + ["the", "of", "and", "to", "with", "that"]) for _ in range(pick.randrange(60, 90))
    ]
    return " ".join(word + ("." if place % 9 == 8 else "") for place, word in enumerate(words)) + "."


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """60 documents, two of them copies and three that quote a question; the set it is from; a target."""
    root = tmp_path_factory.mktemp("chosen")
    texts = [text_of(i) for i in range(60)]
    texts[7], texts[22] = texts[6], texts[21]
    for i in (3, 11, 30):
        texts[i] = f"{texts[i]}\n{QUESTION}\n{text_of(900 + i)}"
    for name in ("input", "target"):
        (root / name).mkdir()
    for file in range(6):
        lines = [json.dumps({"id": f"d{i}", "text": texts[i]}) for i in range(10 * file, 10 * file + 10)]
        (root / f"input/{file}.jsonl").write_text("\n".join(lines))
    (root / "target/sea.txt").write_text("\n\n".join(text_of(4000 + 4 * i) for i in range(20)))
    (root / "riddles.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "126"}))
    return root


def made(folders, tmp_path, **settings):
    config = CurateConfig(input=(str(folders / "input"),), output=str(tmp_path / "corpus"), profile="none", **settings)
    artifact = curate(config)
    kept, dropped = (pq.read_table(f"{artifact.uri}/{part}").sort_by("id").to_pylist() for part in ("kept", "dropped"))
    return artifact, kept, dropped


@pytest.fixture(scope="module")
def settings(folders):
    return {
        "decontaminate": (str(folders / "riddles.jsonl"),), "select_target": (str(folders / "target"),), "select_documents": 10,
        "order": "rarity", "order_pacing": "sorted",
    }  # fmt: skip


@pytest.fixture(scope="module")
def corpus(folders, settings, tmp_path_factory, ray_session):
    return made(folders, tmp_path_factory.mktemp("out"), **settings)


def test_every_document_is_kept_or_has_its_reason(corpus):
    artifact, kept, dropped = corpus
    counts = artifact.manifest.counts
    assert (counts["documents_in"], counts["kept"], len(kept), len(kept) + len(dropped)) == (60, 10, 10, 60)
    assert counts["dropped.contaminated.riddles"] == 3
    assert counts["dropped.duplicate.exact"] == 2
    assert counts[f"dropped.{NOT_SELECTED}"] == 60 - 10 - 3 - 2
    contaminated = [row for row in dropped if row["reason"] == "contaminated.riddles"]
    assert {row["source_id"] for row in contaminated} == {"d3", "d11", "d30"}
    assert {row["excerpt"] for row in contaminated} == {QUESTION.lower().rstrip("?")}


def test_the_chosen_are_the_targets_kind_and_say_why(corpus):
    artifact, kept, dropped = corpus
    assert all(int(row["source_id"][1:]) % 4 == 0 for row in kept)
    left_out = [row for row in dropped if row["reason"] == NOT_SELECTED]
    assert all(row["excerpt"] and row["duplicate_of"] is None for row in left_out)
    assert min(row["score"] for row in kept) > np.mean([row["score"] for row in left_out])
    assert all(row["score"] is None for row in dropped if row["reason"] != NOT_SELECTED)
    metrics = artifact.manifest.metrics
    assert metrics["selection"]["chosen_by"] == "importance"
    assert metrics["selection"]["candidates"] == 55
    assert metrics["decontamination"] == {"riddles": {"items": 1, "too_short": 0, "items_hit": 1, "documents_hit": 3}}
    assert {"selection", "order", "contaminated", "contaminated items"} <= artifact.manifest.figures.keys()


def test_the_kept_have_their_places_in_the_order(corpus):
    assert sorted(row["order"] for row in corpus[1]) == list(range(10))


@pytest.mark.parametrize("num_partitions", [2, 6])
def test_nothing_depends_on_the_partitions(corpus, folders, settings, tmp_path, num_partitions):
    _, kept, dropped = made(folders, tmp_path, **settings, num_partitions=num_partitions, task_bytes=4000)
    assert kept == corpus[1]
    assert dropped == corpus[2]


def test_passages_can_be_cut_and_common_ones_ignored(folders, settings, tmp_path):
    only = {"decontaminate": settings["decontaminate"]}
    _, kept, dropped = made(folders, tmp_path / "cut", **only, decontaminate_cut=True)
    assert not any(row["reason"].startswith("contaminated") for row in dropped)
    freed = {row["source_id"]: row["text"] for row in kept}
    assert freed["d3"] == f"{text_of(3)}\n{text_of(903)}"
    assert all(row["score"] is None and row["order"] is None for row in kept)
    _, kept, _ = made(folders, tmp_path / "common", **only, decontaminate_common=2)
    assert QUESTION in {row["source_id"]: row["text"] for row in kept}["d3"]


def test_a_run_with_another_target_is_not_taken_for_done(folders, settings, tmp_path, ray_session):
    (tmp_path / "target").mkdir()
    (tmp_path / "target/city.txt").write_text("\n\n".join(text_of(4001 + 4 * i) for i in range(20)))
    for target, expected in ((str(folders / "target"), {0}), (str(tmp_path / "target"), {1, 2, 3})):
        config = CurateConfig(
            input=(str(folders / "input"),), output=str(tmp_path / target.replace("/", "_")), profile="none",
            select_target=(target,), select_documents=8,
        )  # fmt: skip
        kept = pq.read_table(f"{curate(config).uri}/kept").to_pylist()
        assert {int(row["source_id"][1:]) % 4 for row in kept} <= expected
    inputs = curate(dataclasses.replace(config)).manifest.inputs
    assert "select_target" in inputs


def test_marks_find_their_rows():
    marks = pa.table(
        {
            "place": np.concatenate([places(0, 1, np.array([2, 0])), places(0, 2, np.array([1]))]),
            "score": [0.5, None, 9.0],
            "order": [7, 8, 9],
        },
        pa.schema([pa.field("place", pa.int64()), *MARKED]),
    )
    found = with_marks(pa.table({"id": ["a", "b", "c"]}), marks, 1).to_pylist()
    assert found == [
        {"id": "a", "score": None, "order": 8}, {"id": "b", "score": None, "order": None}, {"id": "c", "score": 0.5, "order": 7},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decontaminate": ("none.jsonl",)}, "none.jsonl: no such file"),
        ({"select_target": ("none",), "select_share": 0.5}, "none: no such file"),
        ({"select_model": "none", "select_share": 0.5}, "none: "),
    ],
)
def test_mistakes_are_one_line_before_anything_is_read(folders, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        made(folders, tmp_path, **settings)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
