"""Prompts to judge on: from files and from held-out documents, distinct, drawn by seed, within the context."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifact import publish
from train.compress.config import CompressConfig
from train.compress.prompts import prompts_digest, read_probes


class Bytes:
    """A tokenizer of one token per byte."""

    def encode(self, text):
        return list(text.encode())

    def encode_chat(self, messages):
        return self.encode("|".join(f"{m['role']}:{m['content']}" for m in messages))


def config_of(**given):
    return CompressConfig(model="m", **{"completion_tokens": 4, **given})


def test_a_file_gives_its_distinct_prompts(tmp_path):
    rows = [{"prompt": "ab"}, {"prompt": "ab"}, {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}]
    file = tmp_path / "prompts.jsonl.gz"
    with gzip.open(file, "wt") as out:
        out.write("\n".join([*map(json.dumps, rows), "not json", "[1]", "", json.dumps({"prompt": "x" * 99}), '{"other": 1}']))
    probes = read_probes(config_of(prompts=str(file)), Bytes(), context=40)
    assert sorted(bytes(p).decode() for p in probes.prompts) == ["ab", "user:hi"]
    assert probes.skipped == 5  # one repeated, two unreadable, one too long, one without a prompt


def test_the_draw_is_by_seed(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"prompt {n}"}) + "\n" for n in range(50)))
    drawn = [read_probes(config_of(prompts=str(file), num_prompts=5, seed=seed), Bytes(), 40).prompts for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 5


@pytest.fixture
def tokens_folder(tmp_path):
    folder = tmp_path / "tokens"
    with publish(str(folder), stage="tokenize", inputs={}, config=config_of(prompts="any")) as draft:
        pq.write_table(pa.table({"id": ["a", "b"], "text": ["0123456789" * 80, "short"]}), draft.dir / "held_out.parquet")
    return str(folder)


def test_held_out_documents_give_their_beginnings_and_text(tokens_folder):
    probes = read_probes(config_of(tokens=tokens_folder, prompt_tokens=8), Bytes(), context=1000)
    assert [bytes(p) for p in probes.prompts] == [b"01234567"]
    assert [len(text) for text in probes.texts] == [512]
    assert probes.skipped == 1
    assert prompts_digest(config_of(tokens=tokens_folder)) != ""


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        ("", {}, "none of its 0 entries"),
        ("{}\n[]\nbroken\n", {}, "none of its 3 entries is a usable prompt"),
        ('{"prompt": "a"}\n', {}, "single token"),
        ('{"prompt": "abc"}\n', {"completion_tokens": 40}, "leaves no room for a prompt"),
    ],
)
def test_no_usable_prompts_is_one_line(tmp_path, content, given, message):
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_probes(config_of(prompts=str(tmp_path / "p.jsonl"), **given), Bytes(), context=40)


def test_missing_sources_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.jsonl: no such file of prompts"):
        prompts_digest(config_of(prompts=str(tmp_path / "gone.jsonl")))
    with pytest.raises(ValueError, match="tokenize"):
        prompts_digest(config_of(tokens=str(tmp_path)))
    for given in ({}, {"prompts": "a", "tokens": "b"}):
        with pytest.raises(ValueError, match="either"):
            config_of(**given)
