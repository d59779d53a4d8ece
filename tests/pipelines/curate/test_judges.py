"""Judges learn from files and say the same of a text in any company; curation by them, end to end."""

from __future__ import annotations

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.curate.config import CurateConfig
from pipelines.curate.document import DOCUMENT
from pipelines.curate.flow import curate
from pipelines.curate.judges import Judges, drop_by_language, drop_by_models, judge_inputs, judging_steps, train_judges

GOOD = "the of and tern sea ice wind flies north south year egg fish nest wing light storm coast island winter".split()  # noqa: SIM905
BAD = "buy cheap click now free offer best price deal win sale shop order online today discount".split()  # noqa: SIM905
GERMAN = "Die Küstenseeschwalbe ist ein kleiner Vogel, der jedes Jahr von einem Ende der Erde zum anderen fliegt. " * 8


def prose(words, seed):
    pick = random.Random(f"{words[0]} {seed}")
    return " ".join(" ".join(pick.choices([*words, "the", "of"], k=9)).capitalize() + "." for _ in range(12))


def table(*texts, kind="prose"):
    rows = [{"id": str(i), "text": text, "kind": kind, "reason": None if text else "x"} for i, text in enumerate(texts)]
    return pa.Table.from_pylist(rows, DOCUMENT)


def fates(documents):
    return list(zip(documents["text"].to_pylist(), documents["reason"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "labels.jsonl"
    rows = [{"text": prose(words, seed), "label": label} for seed in range(60) for words, label in ((GOOD, 1), (BAD, 0))]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "good.txt"
    path.write_text("\n\n".join(prose(GOOD, seed) for seed in range(200)))
    return str(path)


def test_prose_in_another_language_is_dropped_and_code_is_not_asked():
    english, code = prose(GOOD, 0), table(GERMAN, kind="code")
    documents = drop_by_language(table(english, GERMAN, None), ("en",), 0.5)
    assert fates(documents) == [(english, None), (None, "language.other"), (None, "x")]
    assert documents["language"].to_pylist() == ["en", "de", None]
    assert documents["excerpt"].to_pylist()[1].startswith("Die Küstenseeschwalbe")
    assert drop_by_language(code, ("en",), 0.5) == code
    assert fates(drop_by_language(table(english), ("en",), 1.0))[0][1] in (None, "language.other")


def test_prose_that_its_examples_call_bad_is_dropped(labels):
    judges, told = train_judges(CurateConfig(output="x", quality_labels=labels, quality_threshold=0.5))
    good, bad = prose(GOOD, "new"), prose(BAD, "new")
    documents = drop_by_models(table(good, bad, None), judges)
    assert fates(documents) == [(good, None), (None, "quality.classifier"), (None, "x")]
    quality = documents["quality"].to_pylist()
    assert quality[0] > 0.7 > 0.3 > quality[1]
    assert quality[2] is None
    assert told["quality"]["roc_auc"] > 0.95
    assert told["quality"]["threshold"] == 0.5
    assert drop_by_models(table(bad, kind="code"), judges) == table(bad, kind="code")


def test_without_a_threshold_quality_is_noted_and_nothing_dropped(labels):
    judges, _ = train_judges(CurateConfig(output="x", quality_labels=labels))
    documents = drop_by_models(table(prose(BAD, "new")), judges)
    assert documents["reason"].to_pylist() == [None]
    assert documents["quality"].to_pylist()[0] < 0.5


def test_a_share_keeps_that_share_of_the_good_examples(labels):
    thresholds = [
        train_judges(CurateConfig(output="x", quality_labels=labels, quality_keep=share))[0].min_quality for share in (0.5, 0.9, 1.0)
    ]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] > thresholds[2]


def test_prose_that_the_reference_makes_strange_is_dropped(reference):
    judges, told = train_judges(CurateConfig(output="x", perplexity_reference=reference, perplexity_keep=1.0))
    good, bad = prose(GOOD, "new"), "qxz jkvw pqx zzk " * 30
    assert fates(drop_by_models(table(good, bad), judges)) == [(good, None), (None, "quality.perplexity")]
    assert told["perplexity"]["limit"] == judges.max_perplexity
    nothing, _ = train_judges(CurateConfig(output="x", perplexity_reference=reference, perplexity_keep=0.0))
    assert nothing.max_perplexity < judges.max_perplexity
    set_by_hand, _ = train_judges(CurateConfig(output="x", perplexity_reference=reference, max_perplexity=1.01))
    assert fates(drop_by_models(table(good), set_by_hand)) == [(None, "quality.perplexity")]


def test_the_share_of_the_reference_that_stays_may_be_none(reference):
    limits = [
        train_judges(CurateConfig(output="x", perplexity_reference=reference, perplexity_keep=keep))[0].max_perplexity
        for keep in (0.0, 0.5, 1.0)
    ]
    assert limits[0] < limits[1] < limits[2]


def test_judges_know_one_thing_only_when_asked_for_one():
    assert train_judges(CurateConfig(output="x")) == (Judges(), {})
    assert [name for name, _ in judging_steps(CurateConfig(output="x"), Judges())] == ["quality"]


def test_the_examples_are_part_of_the_inputs(labels, reference, tmp_path):
    config = CurateConfig(output="x", quality_labels=labels, perplexity_reference=reference, perplexity_keep=0.9)
    found = judge_inputs(config)
    assert found.keys() == {"quality_labels", "perplexity_reference"}
    assert judge_inputs(config) == found
    (tmp_path / "other.jsonl").write_text("{}")
    other = CurateConfig(output="x", quality_labels=str(tmp_path / "other.jsonl"))
    assert judge_inputs(other)["quality_labels"] != found["quality_labels"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "a"}'], "line 1: give an object with `text` and `label`"),
        (['{"text": "a", "label": 1}', "{broken"], "line 2: give an object"),
        (["[" * 100_000], "line 1: give an object"),
        (['{"text": "a", "label": "good"}'], "line 1: give an object"),
        (['{"text": "a", "label": 1}'] * 30, "30 good and 0 bad; give 10 of each"),
    ],
)
def test_bad_labels_are_one_line(tmp_path, lines, message):
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message) as caught:
        train_judges(CurateConfig(output="x", quality_labels=str(tmp_path / "labels.jsonl")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("l.jsonl.gz", b"plain"), ("l.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:20]), ("l.jsonl.zst", b"no")],
    ids=["not packed", "cut short", "not packed, either"],
)
def test_labels_that_cannot_be_unpacked_are_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    config = CurateConfig(output="x", quality_labels=str(tmp_path / name))
    assert judge_inputs(config)
    with pytest.raises(ValueError, match=r"l\.jsonl\..*: cannot be read \(.*\); mend the file") as caught:
        train_judges(config)
    assert "\n" not in str(caught.value)


def test_a_folder_of_labels_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"quality_labels: .* is a folder; give a jsonl file"):
        judge_inputs(CurateConfig(output="x", quality_labels=str(tmp_path)))


def test_examples_that_are_not_there_or_too_few_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"quality_labels: .*absent: no such file"):
        judge_inputs(CurateConfig(output="x", quality_labels=str(tmp_path / "absent")))
    (tmp_path / "a.txt").write_text("little")
    with pytest.raises(ValueError, match=r"perplexity_reference: .*a\.txt: holds 6 characters"):
        train_judges(CurateConfig(output="x", perplexity_reference=str(tmp_path / "a.txt"), max_perplexity=9.0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quality_threshold": 0.5}, "quality_threshold: needs quality_labels"),
        ({"quality_keep": 0.5}, "quality_keep: needs quality_labels"),
        ({"quality_labels": "x", "quality_threshold": 0.5, "quality_keep": 0.5}, "quality_keep: quality_threshold is given too"),
        ({"quality_labels": "x", "quality_threshold": 1.5}, "quality_threshold: is 1.5"),
        ({"perplexity_reference": "x"}, "perplexity_reference: needs max_perplexity"),
        ({"max_perplexity": 9.0}, "max_perplexity: needs perplexity_reference"),
        ({"perplexity_reference": "x", "max_perplexity": 0.5}, "max_perplexity: is 0.5"),
        ({"min_language_score": -1.0}, "min_language_score: is -1.0"),
        ({"id_field": ""}, "id_field: is empty"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        CurateConfig(output="x", **given)


def test_curation_by_all_of_them(labels, reference, tmp_path, ray_session):
    texts = {"good": prose(GOOD, "a"), "bad": prose(BAD, "a"), "german": GERMAN, "second": prose(GOOD, "b")}
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"id": name, "text": text}) for name, text in texts.items()))
    config = CurateConfig(
        input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "out"), languages=("en",), min_language_score=0.1,
        quality_labels=labels, quality_threshold=0.5, perplexity_reference=reference, max_perplexity=30.0,
        rules={"gopher": {"short_document": 30}}, profile="gopher",
    )  # fmt: skip
    artifact = curate(config)
    kept = {row["source_id"]: row for row in pq.read_table(f"{artifact.uri}/kept").to_pylist()}
    dropped = {row["source_id"]: row["reason"] for row in pq.read_table(f"{artifact.uri}/dropped").to_pylist()}
    assert kept.keys() == {"good", "second"}
    assert dropped["german"] == "language.other"
    assert dropped["bad"] == "quality.classifier"
    assert {row["language"] for row in kept.values()} == {"en"}
    assert min(row["quality"] for row in kept.values()) > 0.5
    assert artifact.manifest.metrics["judges"]["quality"]["examples"] == 120
