"""Curation end to end on Ray Data: the same corpus however it is cut, every drop explained, bad input in one line."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.storage import resolve
from pipelines.curate import flow
from pipelines.curate.config import CurateConfig
from pipelines.curate.flow import curate
from pipelines.curate.minhash import jaccard, shingles
from pipelines.curate.normalize import canonical

VOCABULARY = [
    "the", "of", "and", "tern", "sea", "ice", "wind", "flies", "north", "south", "year", "egg", "fish", "nest", "wing", "light",
    "storm", "coast", "island", "winter",
]  # fmt: skip


def prose(seed, words=120):
    """Sentences that no quality rule drops, different for each seed."""
    pick = random.Random(seed)
    text = [f"{pick.choice(VOCABULARY)}{pick.randrange(1000) if pick.random() < 0.05 else ''}" for _ in range(words)]
    said = [word.capitalize() if place % 9 == 0 else word for place, word in enumerate(text)]
    return " ".join(word + ("." if place % 9 == 8 else "") for place, word in enumerate(said)) + "."


def edited(text, share, seed):
    pick = random.Random(seed)
    return " ".join("changed" if pick.random() < share else word for word in text.split())


@pytest.fixture(scope="module")
def input_dir(tmp_path_factory):
    """40 originals, near-copies and copies (one of an original that falls to a near-copy), bad records, code; in several formats."""
    folder = tmp_path_factory.mktemp("input")
    originals = [prose(i) for i in range(40)]
    near = [edited(originals[i], 0.01, i) + " And one more sentence." for i in range(10)]
    lines = [json.dumps({"text": t}) for t in originals[:20] + near + originals[10:13] + originals[:1]] + [
        "{broken",
        '{"other": 1}',
        '{"text": "short"}',
    ]
    random.Random(0).shuffle(lines)
    (folder / "a.jsonl").write_text("\n".join(lines))
    for place, text in enumerate(originals[20:]):
        (folder / f"{place:02d}.md").write_text(text)
    (folder / "copy.md").write_text(originals[25].replace(". ", ".\n"))
    (folder / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    code = "\n".join(f"def function_{i}(left, right):\n    return left * {i} + right" for i in range(12))
    (folder / "code.py").write_text(code)
    (folder / "code_again.py").write_text(code + "\n")
    return folder


def tables(output):
    return (pq.read_table(f"{output}/{part}").sort_by("id").to_pylist() for part in ("kept", "dropped"))


@pytest.fixture(scope="module")
def corpus(input_dir, tmp_path_factory, ray_session):
    config = CurateConfig(input=(str(input_dir),), output=str(tmp_path_factory.mktemp("out") / "corpus"))
    return config, curate(config)


def test_counts_are_conserved_and_the_folder_is_as_promised(corpus):
    _, artifact = corpus
    kept, dropped = tables(artifact.uri)
    counts = artifact.manifest.counts
    assert counts["documents_in"] == 61 == counts["kept"] + sum(n for name, n in counts.items() if name.startswith("dropped."))
    assert counts["kept"] == len(kept)
    assert len({row["id"] for row in kept + dropped}) == 61
    assert {name.split("/")[0] for name in artifact.manifest.files} == {"kept", "dropped", "signatures"}
    assert {row["kind"] for row in kept} == {"code", "prose"}
    assert counts["dropped.duplicate.exact"] == 3 + 1 + 1
    assert counts["dropped.unreadable.json"] == counts["dropped.unreadable.no_text"] == counts["dropped.unreadable.encoding"] == 1
    assert all(row["num_chars"] == len(row["text"]) and row["num_words"] == len(row["text"].split()) for row in kept)
    assert artifact.manifest.headline.startswith(f"{len(kept)} of 61 documents kept")


def test_every_duplicate_names_a_kept_document_and_their_exact_similarity(corpus):
    _, artifact = corpus
    kept, dropped = tables(artifact.uri)
    texts = {row["id"]: row["text"] for row in kept}
    duplicates = [row for row in dropped if row["reason"].startswith("duplicate.")]
    assert len(duplicates) >= 10
    for row in duplicates:
        assert row["similarity"] >= 0.8 if row["reason"] == "duplicate.near" else row["similarity"] == 1.0
        assert row["duplicate_of"] in texts
        assert len(texts[row["duplicate_of"]]) >= row["num_chars"]
    assert all(row["duplicate_of"] is None for row in dropped if row not in duplicates)


def test_no_two_kept_documents_that_share_a_band_are_similar(corpus):
    """The other half of the rule, here over all pairs: MinHash misses few at 14 bands of 8, and none of these."""
    kept, _ = tables(corpus[1].uri)
    sets = [np.unique(s) for s in shingles([canonical(row["text"]) for row in kept], 5)]
    assert max(jaccard(a, b) for i, a in enumerate(sets) for b in sets[:i]) < 0.8


@pytest.mark.parametrize("num_partitions", [1, 2, 8])
def test_the_corpus_does_not_depend_on_the_partitions(corpus, tmp_path, num_partitions):
    config, artifact = corpus
    other = curate(dataclasses.replace(config, num_partitions=num_partitions, output=str(tmp_path / "corpus")))
    assert [*tables(other.uri)] == [*tables(artifact.uri)]


@pytest.mark.parametrize("driver_bytes", [1 << 30, 1])
def test_small_memory_changes_nothing(corpus, tmp_path, driver_bytes):
    """Many groups whose sets do not fit at a time; candidates found by the driver or by shuffles."""
    config, artifact = corpus
    small = {"num_partitions": 3, "task_bytes": 4000, "driver_bytes": driver_bytes}
    other = curate(dataclasses.replace(config, **small, output=str(tmp_path / "corpus")))
    assert [*tables(other.uri)] == [*tables(artifact.uri)]
    assert (other.manifest.metrics["rounds"] > 0) == (driver_bytes == 1)


def power_cut(*_):
    raise RuntimeError("power cut")


def test_a_finished_run_is_recognised_and_an_interrupted_one_goes_on(corpus, tmp_path, monkeypatch, capsys):
    config, artifact = corpus
    assert curate(config).manifest == artifact.manifest
    assert "already done" in capsys.readouterr().err
    again = dataclasses.replace(config, output=str(tmp_path / "corpus"))
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.curate.flow.duplicates", power_cut)
        with pytest.raises(RuntimeError, match="power"):
            curate(again)
    assert not (tmp_path / "corpus").exists()
    monkeypatch.setattr("pipelines.curate.flow.chunked", lambda *_: pytest.fail("read again"))
    assert [*tables(curate(again).uri)] == [*tables(artifact.uri)]


def on_another_disk(step, files_of):
    """The step, its files out of the driver's reach afterwards: those that `files_of` finds by its arguments and its result.

    Whole files only: what another task is still writing is not this one's to take."""

    def run(documents, *rest, **settings):
        result = step(documents, *rest, **settings)
        for uri in files_of(result, rest):
            Path(uri).unlink(missing_ok=True)
        return result

    return run


@pytest.mark.parametrize(
    ("step", "files_of"),
    [
        ("stage", lambda table, _: table["piece"].to_pylist()),
        ("write_bundle", lambda _, rest: Path(rest[-1], "kept").glob("*.parquet")),
        ("write_bundle", lambda _, rest: Path(rest[-1], "dropped").glob("*1.parquet")),
    ],
)
def test_what_workers_wrote_to_their_own_disks_is_not_published(corpus, tmp_path, monkeypatch, step, files_of):
    config, artifact = corpus
    again = dataclasses.replace(config, num_partitions=3, task_bytes=4000, output=str(tmp_path / "corpus"))
    with monkeypatch.context() as patch:
        patch.setattr(f"pipelines.curate.flow.{step}", on_another_disk(getattr(flow, step), files_of))
        with pytest.raises(ValueError, match=r"/corpus: \d+ of 61 documents are in this folder: .*; use s3://") as caught:
            curate(again)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "corpus").exists()
    assert [*tables(curate(again).uri)] == [*tables(artifact.uri)]


def test_what_a_killed_task_left_half_written_is_not_published(corpus, tmp_path, monkeypatch):
    config, artifact = corpus

    def half_written(bundle, *rest):
        Path(rest[-1], "kept").mkdir(exist_ok=True)
        Path(rest[-1], "kept", "00000.parquet.123.abc").write_text("half")
        return flow.write_bundle(bundle, *rest)

    monkeypatch.setattr("pipelines.curate.flow.write_bundle", half_written)
    other = curate(dataclasses.replace(config, output=str(tmp_path / "corpus")))
    assert all(name.endswith(".parquet") for name in other.manifest.files)
    assert [*tables(other.uri)] == [*tables(artifact.uri)]


def test_repeated_paragraphs_are_cut_and_counted(tmp_path, ray_session):
    """A notice under eight documents stays under two; a document of nothing else is dropped for it."""
    notice = "This notice stands under every page of the place and says that all of its rights are reserved by whoever wrote it."
    notice = " ".join([notice, prose(99, 60)])
    texts = [f"{prose(n)}\n\n{notice}" for n in range(8)] + [notice]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    config = CurateConfig(input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "a"), paragraphs=True, paragraph_documents=2)
    artifact = curate(config)
    kept, dropped = tables(artifact.uri)
    assert sum(notice in row["text"] for row in kept) == 2
    assert [row["reason"] for row in dropped] == ["duplicate.paragraphs"]
    assert artifact.manifest.metrics["paragraphs_cut"] == 7
    assert artifact.manifest.counts == {"documents_in": 9, "kept": 8, "dropped.duplicate.paragraphs": 1}


@pytest.mark.parametrize(("survivors", "first"), [("longest", "long"), ("oldest", "old")])
def test_who_survives_is_configured(tmp_path, ray_session, survivors, first):
    texts = {"long": prose(1) + " And a few more words.", "old": prose(1)}
    dates = {"long": "2024-05-01T10:00:00Z", "old": "2020-05-01"}
    lines = [json.dumps({"id": name, "text": text, "date": dates[name]}) for name, text in texts.items()]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    config = CurateConfig(input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "a"), survivors=survivors)
    (kept,), (dropped,) = tables(curate(config).uri)
    assert (kept["source_id"], dropped["duplicate_of"]) == (first, kept["id"])


class DyingDisk:
    """A filesystem whose machine goes away in the middle of deleting a folder: some pieces are gone, the summary is not."""

    def __init__(self, filesystem):
        self._filesystem = filesystem

    def __getattr__(self, name):
        return getattr(self._filesystem, name)

    def delete_dir(self, path):
        next(Path(path).glob("*.parquet")).unlink()
        power_cut()


def test_a_kill_while_the_working_state_is_deleted_costs_only_time(corpus, tmp_path, monkeypatch):
    config, artifact = corpus
    again = dataclasses.replace(config, output=str(tmp_path / "corpus"))
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.curate.flow.resolve", lambda uri: (DyingDisk(resolve(uri)[0]), resolve(uri)[1]))
        with pytest.raises(RuntimeError, match="power"):
            curate(again)
    assert [*tables(curate(again).uri)] == [*tables(artifact.uri)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{broken\n[1]\n", "none of its 2 records can be read"),
        ('{"text": "too short"}', "no document is left of 1"),
        ("\n\n", "holds no document"),
    ],
)
def test_input_that_leaves_nothing_is_one_line(tmp_path, ray_session, content, message):
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        curate(CurateConfig(input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "corpus")))
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    "values",
    [
        {"output": ""},
        {"threshold": 0},
        {"bands": 0},
        {"max_bytes": 0},
        {"num_partitions": -1},
        {"seed": -1},
        {"text_field": ""},
        {"task_bytes": 0},
        {"driver_bytes": 0},
        {"bucket_limit": 0},
        {"ngram": 1001},
        {"bands": 101, "rows": 100},
        {"seed": 2**63},
        {"input": ("docs", "")},
        {"quality_labels": ""},
        {"perplexity_reference": "", "perplexity_keep": 0.9},
        {"date_field": ""},
        {"survivors": "best"},
    ],
)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        CurateConfig(**{"output": "corpus", **values})
