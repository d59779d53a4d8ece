"""A new batch against a corpus: the old documents come first and stay, and only those that might be alike are read."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.artifact import open_artifact
from pipelines.curate.against import earlier, pieces_of
from pipelines.curate.config import CurateConfig
from pipelines.curate.flow import curate
from pipelines.curate.piece import read_piece
from tests.pipelines.curate.corpora import by_definition

WORDS = [f"w{n}" for n in range(300)]


def batch(seed, like=()):
    """Texts of their own, near-copies and copies of those and of the ones they are `like`."""
    pick = random.Random(seed)
    texts = [" ".join(pick.choices(WORDS, k=pick.randint(60, 90))) for _ in range(15)]
    for _ in range(15):
        words = pick.choice([*texts, *like]).split()
        words[pick.randrange(len(words))] = "changed"
        texts.append(" ".join(words))
    return [*texts, *(pick.choice([*texts, *like]).upper() for _ in range(5))]


def write(folder, texts):
    """Three files of the texts, in order."""
    folder.mkdir()
    for number, own in enumerate(np.array_split(np.array(texts, object), 3)):
        (folder / f"{number}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in own))
    return (str(folder),)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, ray_session):
    """curate(A), curate(B against A), curate(C against both), with the rules of quality off."""
    folder = tmp_path_factory.mktemp("against")
    config = CurateConfig(output=str(folder / "A"), profile="none", ngram=2, bands=8, rows=2, threshold=0.7, num_partitions=2)
    texts = {"A": batch(1)}
    texts["B"] = batch(2, texts["A"])
    texts["C"] = batch(3, texts["A"] + texts["B"])
    for name in "ABC":
        against = tuple(str(folder / earlier) for earlier in "ABC" if earlier < name)
        given = {"input": write(folder / f"{name}-in", texts[name]), "output": str(folder / name), "against": against}
        curate(dataclasses.replace(config, **given, driver_bytes=1 if name == "C" else 1 << 30))
    return folder, config


def rows_of(folder, part):
    return [row for file in sorted((folder / part).glob("*")) for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize("name", ["B", "C"])
def test_what_is_kept_is_what_the_rule_gives_when_the_old_come_first(corpora, name):
    folder, config = corpora
    old = [row for other in "AB" if other < name for row in rows_of(folder / other, "kept")]
    kept, dropped = rows_of(folder / name, "kept"), rows_of(folder / name, "dropped")
    files = [file.read_text().splitlines() for file in sorted((folder / f"{name}-in").iterdir())]
    lines = [json.loads(line)["text"] for file in files for line in file]
    new = sorted(kept + dropped, key=lambda row: (row["source"], row["ordinal"]))
    texts, ids = [row["text"] for row in old] + lines, [row["id"] for row in [*old, *new]]
    want = by_definition(texts, ids, config, settled=range(len(old)))
    found = {row["id"]: (row["reason"], row["similarity"]) for row in dropped}
    assert found == {i: (reason, similarity) for i, (reason, _, similarity) in want.items()}
    assert {row["id"] for row in kept} == {row["id"] for row in new} - want.keys()
    of_old = {row["duplicate_of"] for row in dropped} & {row["id"] for row in old}
    assert len(of_old) > 3, "some repeat the old"
    headline = open_artifact(str(folder / name), made_by="curate").manifest.headline
    assert headline.endswith("new beside 1 earlier corpus" if name == "B" else "new beside 2 earlier corpora")


def test_the_same_batch_again_keeps_nothing(corpora):
    folder, config = corpora
    again = curate(dataclasses.replace(config, input=(str(folder / "A-in"),), output=str(folder / "again"), against=(str(folder / "A"),)))
    assert again.manifest.counts["kept"] == 0
    assert again.manifest.counts["documents_in"] == 35


def test_only_what_may_be_alike_is_read(corpora, tmp_path, monkeypatch):
    """The old texts are taken away but for one file's: a batch that is like that one only does not miss them."""
    folder, config = corpora
    corpus = open_artifact(str(folder / "A"), made_by="curate")
    first, *others = pieces_of(corpus)
    assert others
    text = read_piece(first.text, ["text"])["text"][0].as_py()
    monkeypatch.setattr("pipelines.curate.flow.pieces_of", lambda _: [first, *(dataclasses.replace(o, text="/gone") for o in others)])
    config = dataclasses.replace(config, input=write(tmp_path / "in", [text, "entirely " + "different words of its own " * 9]))
    counts = curate(dataclasses.replace(config, output=str(tmp_path / "out"), against=(str(folder / "A"),))).manifest.counts
    assert (counts["kept"], counts["dropped.duplicate.exact"]) == (1, 1)


def test_signatures_stand_row_by_row_for_the_kept(corpora):
    folder, _ = corpora
    for file in sorted((folder / "B" / "kept").glob("*")):
        signed = pq.read_table(folder / "B" / "signatures" / file.name)
        assert signed["id"].to_pylist() == pq.read_table(file)["id"].to_pylist()
        assert signed["row"].to_pylist() == list(range(signed.num_rows))


def test_a_corpus_that_cannot_be_compared_is_refused_in_one_line(corpora, tmp_path, monkeypatch):
    folder, config = corpora
    config = dataclasses.replace(config, against=(str(folder / "A"),), output=str(tmp_path / "out"))
    assert len(earlier(config)) == 1
    for wrong, message in (({"bands": 9}, "bands 8, not 9; give the same"), ({"seed": 5}, "seed 0, not 5; give the same")):
        with pytest.raises(ValueError, match=message) as caught:
            earlier(dataclasses.replace(config, **wrong))
        assert str(caught.value).startswith(f"against: {folder}/A was curated with")
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.curate.against.SIGNATURE_FORM", 2)
        with pytest.raises(ValueError, match="/A has signatures of another form"):
            earlier(config)
    with pytest.raises(ValueError, match="no such folder"):
        earlier(dataclasses.replace(config, against=(str(tmp_path / "none"),)))


@pytest.mark.parametrize("output", ["corpus", "corpus/", "./corpus", "corpus/../corpus", "link"])
def test_the_output_is_no_earlier_corpus(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("corpus")
    (tmp_path / "corpus").mkdir()
    with pytest.raises(ValueError, match=r"^against: corpus is the output, which would be replaced"):
        earlier(CurateConfig(output=output, against=("corpus",)))
