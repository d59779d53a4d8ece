"""Tokenisation end to end: every document held out or in the shards once, and back to text without loss."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import pipelines.tokens
from pipelines.config import TokenizeConfig
from pipelines.curate.config import CurateConfig
from pipelines.curate.flow import curate
from pipelines.tokens import tokenize
from train.corpus import Sequences

WORDS = [
    "return", "self", "value", "for", "in", "the", "of", "tern", "flies", "naïve", "日本", "🐦", "<|endoftext|>", "<|user|>", "def",
    "class", "import", "\t", "x_1", "1234",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, ray_session):
    """120 short modules of 3 to 300 lines, special tokens spelled out in some, whatever the bytes."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(120):
        pick = random.Random(i)
        lines = [
            f"name_{i}_{n} = " + " ".join(pick.choice(WORDS) for _ in range(pick.randrange(1, 12))) for n in range(pick.choice([8, 20, 90]))
        ]
        (folder / f"{i}.py").write_text("\n".join(lines))
    return curate(CurateConfig(input=(str(folder),), output=f"{folder}.corpus", num_partitions=3))


@pytest.fixture(scope="module")
def tokens(corpus, tmp_path_factory):
    output = str(tmp_path_factory.mktemp("out") / "tokens")
    config = TokenizeConfig(corpus=corpus.uri, output=output, vocab_size=600, length=64, held_out=0.1, bucket_sequences=32)
    return config, tokenize(config)


def shards_of(uri):
    names = sorted({p.name[:5] for p in Path(uri, "shards").iterdir()})
    for name in names:
        arrays = (np.load(f"{uri}/shards/{name}.{kind}.npy", mmap_mode="r") for kind in ("tokens", "segments"))
        yield *arrays, pq.read_table(f"{uri}/shards/{name}.documents.parquet").to_pylist()


def decoded(uri):
    """Document id -> its text, from its segments in order."""
    tokenizer = Tokenizer.from_file(f"{uri}/tokenizer/tokenizer.json")
    ids = {}
    for tokens, segments, rows in shards_of(uri):
        for row in sorted(rows, key=lambda r: (r["id"], r["part"])):
            part = tokens[row["sequence"]][segments[row["sequence"]] == row["segment"]].tolist()
            assert len(part) == row["num_tokens"]
            ids.setdefault(row["id"], []).extend(part)
    assert all(tokens[-1] == 0 for tokens in ids.values())
    return {document: tokenizer.decode(tokens[:-1], skip_special_tokens=False) for document, tokens in ids.items()}


def test_every_document_is_held_out_or_comes_back_from_its_segments(corpus, tokens):
    _, artifact = tokens
    texts = {row["id"]: row["text"] for row in pq.read_table(f"{corpus.uri}/kept").to_pylist()}
    held_out = {row["id"]: row["text"] for row in pq.read_table(f"{artifact.uri}/held_out.parquet").to_pylist()}
    trained = decoded(artifact.uri)
    assert not held_out.keys() & trained.keys()
    assert held_out | trained == texts
    assert 2 <= len(held_out) <= 30
    counts = artifact.manifest.counts
    assert (counts["documents_in"], counts["documents_held_out"]) == (len(texts), len(held_out))
    assert counts["documents_trained"] == len(trained)


def test_shards_and_metrics_agree(tokens):
    config, artifact = tokens
    metrics = artifact.manifest.metrics
    num_tokens = num_sequences = 0
    for shard, segments, _ in shards_of(artifact.uri):
        assert shard.dtype == segments.dtype == np.uint16
        assert shard.shape == segments.shape == (len(shard), config.length)
        num_tokens += int((segments > 0).sum())
        num_sequences += len(shard)
    assert (metrics["num_tokens"], metrics["num_sequences"]) == (num_tokens, num_sequences)
    assert metrics["padding_share"] == pytest.approx(1 - num_tokens / num_sequences / config.length, abs=1e-6)
    assert metrics["padding_share"] < 0.05
    assert 261 < metrics["vocab_size"] <= 600
    assert f"{num_sequences:,} sequences of 64" in artifact.manifest.headline


def test_the_tokenizer_loads_with_its_special_tokens_and_template(tokens):
    tokenizer = AutoTokenizer.from_pretrained(f"{tokens[1].uri}/tokenizer")
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "so"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>\nhi<|assistant|>\nyes<|endoftext|><|user|>\nso<|assistant|>\n"
    assert tokenizer("<|user|>")["input_ids"] == [2]


def test_several_shards_hold_the_same_documents_in_the_same_order(tokens, tmp_path):
    config, artifact = tokens
    many = tokenize(dataclasses.replace(config, output=str(tmp_path / "many"), shard_sequences=300))
    assert many.manifest.metrics["num_shards"] > 1
    assert decoded(many.uri) == decoded(artifact.uri)


def test_a_given_tokenizer_is_used_and_copied(tokens, tiny_model_dir, tmp_path):
    config, _ = tokens
    artifact = tokenize(dataclasses.replace(config, output=str(tmp_path / "tokens"), tokenizer=str(tiny_model_dir)))
    loaded = AutoTokenizer.from_pretrained(f"{artifact.uri}/tokenizer")
    assert artifact.manifest.metrics["vocab_size"] == len(loaded)
    assert loaded.pad_token_id == 3
    assert decoded(artifact.uri).keys() == decoded(tokens[1].uri).keys()


def test_two_runs_write_the_same_bytes(tokens, tmp_path):
    config, artifact = tokens
    assert tokenize(dataclasses.replace(config, output=str(tmp_path / "again"))).digest == artifact.digest


def test_a_finished_run_is_recognised(tokens, capsys):
    config, artifact = tokens
    assert tokenize(config).manifest == artifact.manifest
    assert "already done" in capsys.readouterr().err


def test_shards_on_other_machines_disks_are_not_published(tokens, tmp_path, monkeypatch):
    config, artifact = tokens

    def on_another_disk(block, folder, **settings):
        for table in write(block, folder=folder, **settings):
            Path(folder, f"{table['shard'][0].as_py():05d}.tokens.npy").unlink()
            yield table

    write = pipelines.tokens._write_shards
    again = dataclasses.replace(config, output=str(tmp_path / "tokens"))
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.tokens, "_write_shards", on_another_disk)
        with pytest.raises(ValueError, match=r"/tokens: 0 of \d+ sequences are in this folder: .*; use s3://") as caught:
            tokenize(again)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tokens").exists()
    assert tokenize(again).digest == artifact.digest


def test_mistakes_are_one_line(corpus, tokens, tmp_path):
    config, artifact = tokens
    wrong = [
        (dataclasses.replace(config, corpus=str(tmp_path)), "`sterna curate` makes it"),
        (dataclasses.replace(config, corpus=artifact.uri), "was made by `sterna tokenize`"),
        (dataclasses.replace(config, output=str(tmp_path / "a"), tokenizer=str(tmp_path)), "no tokenizer.json here"),
        (dataclasses.replace(config, output=str(tmp_path / "b"), held_out=0.9999999), "all held out"),
    ]
    for config_, message in wrong:
        with pytest.raises(ValueError, match=message) as caught:
            tokenize(config_)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{"vocab_size": 300}, {"length": 4}, {"length": 70_000}, {"held_out": 1.0}, {"bucket_sequences": 0}])
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        TokenizeConfig(corpus="c", output="t", **values)


def test_an_order_survives_packing(corpus, tmp_path):
    """The sequences that the index names hold the documents in the order of their places, across shards."""
    text = corpus.uri.removesuffix(".corpus")
    ordered = curate(CurateConfig(input=(text,), output=str(tmp_path / "corpus"), order="length", order_pacing="sorted"))
    place = {row["id"]: row["order"] for row in pq.read_table(f"{ordered.uri}/kept").to_pylist()}
    assert sorted(place.values()) == list(range(len(place)))
    config = TokenizeConfig(
        corpus=ordered.uri, output=str(tmp_path / "tokens"), vocab_size=600, length=64, held_out=0.1, shard_sequences=150
    )
    artifact = tokenize(config)
    index = np.load(f"{artifact.uri}/index.npy")
    shards = list(shards_of(artifact.uri))
    starts = np.cumsum([0, *(len(tokens) for tokens, _, _ in shards)])
    assert len(shards) > 1
    assert sorted(index.tolist()) == list(range(starts[-1]))
    held = [[] for _ in range(starts[-1])]
    for start, (_, _, rows) in zip(starts, shards, strict=False):
        for row in rows:
            held[start + row["sequence"]] += [place[row["id"]]] * row["num_tokens"]
    means = [np.mean(held[sequence]) for sequence in index]
    assert means == sorted(means)
    assert np.mean([max(places) - min(places) for places in held]) < len(place) / 8  # a sequence holds neighbours
    assert artifact.manifest.metrics["ordered"]
    assert artifact.manifest.metrics["padding_share"] < 0.1
    assert Sequences.open(Path(artifact.uri)).index.tolist() == index.tolist()


def test_a_corpus_without_an_order_gets_no_index(tokens):
    _, artifact = tokens
    assert not Path(artifact.uri, "index.npy").exists()
    assert not artifact.manifest.metrics["ordered"]
