"""Prompts to judge on: from files and from held-out documents, distinct, drawn by seed, within the context."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.artifact import publish
from train.compress.config import CompressConfig
from train.compress.prompts import prompts_digest, read_probes, share_out


class Bytes:
    """A tokenizer of one token per byte."""

    def encode(self, text):
        return list(text.encode())

    def encode_chat(self, messages):
        if any(message["role"] == "pirate" for message in messages):
            raise ValueError("messages: refused by the chat template")
        return self.encode("|".join(f"{m['role']}:{m['content']}" for m in messages))


def config_of(**given):
    return CompressConfig(model="m", **{"completion_tokens": 4, **given})


def held_out_of(config, context):
    parts, skipped = read_probes(config, Bytes(), context, {"held_out": config.num_prompts})
    return parts["held_out"], skipped


def test_a_file_gives_its_distinct_prompts(tmp_path):
    rows = [{"prompt": "ab"}, {"prompt": "ab"}, {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}]
    file = tmp_path / "prompts.jsonl.gz"
    with gzip.open(file, "wt") as out:
        out.write("\n".join([*map(json.dumps, rows), "not json", "[1]", "", json.dumps({"prompt": "x" * 99}), '{"other": 1}']))
    probes, skipped = held_out_of(config_of(prompts=str(file)), 40)
    assert sorted(bytes(p).decode() for p in probes.prompts) == ["ab", "user:hi"]
    assert skipped == 5  # one repeated, two unreadable, one too long, one without a prompt


def test_the_draw_is_by_seed(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"prompt {n}"}) + "\n" for n in range(50)))
    drawn = [held_out_of(config_of(prompts=str(file), num_prompts=5, seed=seed), 40)[0].prompts for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 5


def test_parts_are_disjoint_and_the_first_does_not_depend_on_the_others(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"prompt {n}"}) + "\n" for n in range(50)))
    config = config_of(prompts=str(file))
    parts, _ = read_probes(config, Bytes(), 40, {"held_out": 20, "search": 20, "calibration": 5})
    drawn = [tuple(prompt) for part in parts.values() for prompt in part.prompts]
    assert len(set(drawn)) == len(drawn) == 45
    assert read_probes(config, Bytes(), 40, {"held_out": 20})[0]["held_out"] == parts["held_out"]
    few, _ = read_probes(config, Bytes(), 40, {"held_out": 64, "search": 64, "calibration": 64})
    assert [len(part.prompts) for part in few.values()] == [18, 16, 16]
    with pytest.raises(ValueError, match="50 usable prompts, but 0, 1"):
        read_probes(config, Bytes(), 40, {str(n): 1 for n in range(51)})


@given(st.lists(st.integers(1, 200), min_size=1, max_size=4), st.integers(1, 300))
def test_shares_leave_nothing_and_nobody_empty(sizes, available):
    available = max(available, len(sizes))
    shares = share_out({str(n): size for n, size in enumerate(sizes)}, available)
    assert sum(shares.values()) == min(available, sum(sizes))
    assert min(shares.values()) >= 1


@pytest.fixture
def tokens_folder(tmp_path):
    folder = tmp_path / "tokens"
    with publish(str(folder), stage="tokenize", inputs={}, config=config_of(prompts="any")) as draft:
        pq.write_table(
            pa.table({"id": ["a", "b", "c"], "text": ["0123456789" * 80, "short", "9876543210" * 80]}), draft.dir / "held_out.parquet"
        )
    return str(folder)


def test_held_out_documents_give_their_beginnings_and_text(tokens_folder):
    probes, skipped = held_out_of(config_of(tokens=tokens_folder, prompt_tokens=8), 1000)
    assert [bytes(p) for p in probes.prompts] == [b"01234567", b"98765432"]
    assert [len(text) for text in probes.texts] == [512, 512]
    assert skipped == 1
    assert prompts_digest(config_of(tokens=tokens_folder)) != ""


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("", {}, "none of its 0 entries"),
        ("{}\n[]\nbroken\n", {}, "none of its 3 entries is a usable prompt .*line 1: has neither `prompt`"),
        ("broken\n", {}, "line 1: is not JSON in UTF-8"),
        ('{"prompt": "\\ud800"}\n', {}, "line 1: is not JSON in UTF-8"),
        ("[" * 100_000, {}, "line 1: maximum recursion depth"),
        ('{"messages": [{"role": "pirate", "content": "arr"}]}', {}, "line 1: messages: refused"),
        ('{"prompt": "a"}\n{"prompt": "b"}\n', {}, "single token"),
        ('{"prompt": "abc"}\n' * 3, {}, "1 usable prompts, but held_out each need their own, and held_out two"),
        ('{"prompt": "abc"}\n', {"completion_tokens": 40}, "leaves no room for a prompt"),
    ],
)
def test_no_usable_prompts_is_one_line(tmp_path, content, settings, message):
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        held_out_of(config_of(prompts=str(tmp_path / "p.jsonl"), **settings), 40)


def test_what_is_packed_and_cannot_be_unpacked_is_one_line(tmp_path):
    (tmp_path / "p.jsonl.gz").write_text('{"prompt": "abc"}')
    with pytest.raises(ValueError, match=r"p\.jsonl\.gz: cannot be read .*; give a jsonl file"):
        held_out_of(config_of(prompts=str(tmp_path / "p.jsonl.gz")), 40)


def test_a_conversation_that_the_template_refuses_is_counted(tmp_path):
    rows = [[{"role": role, "content": word}] for role, word in (("user", "hi"), ("pirate", "arr"), ("user", "ho"))]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    probes, skipped = held_out_of(config_of(prompts=str(tmp_path / "p.jsonl")), 40)
    assert (len(probes.prompts), skipped) == (2, 1)


def test_missing_sources_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.jsonl: no such file of prompts"):
        prompts_digest(config_of(prompts=str(tmp_path / "gone.jsonl")))
    with pytest.raises(ValueError, match="tokenize"):
        prompts_digest(config_of(tokens=str(tmp_path)))
    for sources in ({}, {"prompts": "a", "tokens": "b"}):
        with pytest.raises(ValueError, match="either"):
            config_of(**sources)
