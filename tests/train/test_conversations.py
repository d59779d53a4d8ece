from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from cluster.artifact import publish
from train.config import EvaluateConfig
from train.conversations import encode, from_corpus, from_jsonl, split
from train.corpus import IGNORED
from train.instructions import parse_conversation


def conversation(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"add {number}"}, {"role": "assistant", "content": f"return {number}"}]


def test_only_the_answers_are_targets_and_the_prompt_is_as_a_server_sees_it(tiny_model_dir: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    turns = [*conversation(1), *conversation(2)]
    packed, dropped = encode([turns], tokenizer, 128)
    assert not dropped
    assert packed is not None
    batch = packed.batch(np.array([0]))
    targets = [int(t) for t in batch.labels[0] if t != IGNORED]
    assert tokenizer.decode(targets) == "return 1<|endoftext|>return 2<|endoftext|>"
    first = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(first, add_special_tokens=False)
    assert batch.input_ids[0, : len(prompt)].tolist() == prompt
    assert batch.labels[0, : len(prompt) - 1].eq(IGNORED).all()


def test_what_does_not_fit_is_counted(tiny_model_dir: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    long = [{"role": "user", "content": "x " * 400}, {"role": "assistant", "content": "y"}]
    packed, dropped = encode([long, conversation(3)], tokenizer, 64)
    assert packed is not None
    assert dropped == {"too_long": 1}
    assert encode([long], tokenizer, 64)[0] is None


def test_bad_lines_of_a_jsonl_file_are_set_aside(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join([json.dumps({"messages": conversation(1)}), "{", "", '{"messages": 3}']))
    read = from_jsonl(str(path), parse_conversation, "messages")
    assert read.found == [conversation(1)]
    assert read.dropped == {"not_json": 1, "no_messages": 1}
    path.write_text("nothing\n")
    with pytest.raises(ValueError, match=r"no line can be used .*needs messages"):
        from_jsonl(str(path), parse_conversation, "messages")
    with pytest.raises(ValueError, match="no such file"):
        from_jsonl(str(tmp_path / "absent.jsonl"), parse_conversation, "messages")


def test_lines_that_no_tokenizer_takes_are_set_aside(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    halves = json.dumps({"messages": [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "x"}]})
    path.write_text("\n".join([json.dumps({"messages": conversation(1)}), halves, "[" * 100_000]))
    assert from_jsonl(str(path), parse_conversation, "messages").dropped == {"bad_message": 1, "not_json": 1}


def test_what_the_chat_template_refuses_is_counted(tiny_model_dir: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    packed, dropped = encode([[{"role": "system", "content": "be kind"}, *conversation(1)], conversation(2)], tokenizer, 64)
    assert packed is not None
    assert dropped == {"template": 1}


def test_the_split_is_a_function_of_the_pairs_alone():
    pairs = [conversation(n) for n in range(40)]
    train, held_out = split(pairs, 30, 0.2)
    assert (len(train), len(held_out)) == (24, 6)
    assert split([*reversed(pairs), conversation(3)], 30, 0.2) == (train, held_out)
    assert not [pair for pair in train if pair in held_out]
    with pytest.raises(ValueError, match="at least 2"):
        split([conversation(1), conversation(1)], 10, 0.5)


def test_pairs_come_from_the_python_documents_of_a_corpus(tmp_path: Path):
    code = 'def f{n}(x):\n    """Add {n}."""\n    return x + {n}\n'
    rows = {"id": [f"{n:02}" for n in range(6)], "format": ["py"] * 5 + ["md"], "text": [code.format(n=n) for n in range(6)]}
    rows["num_chars"] = [len(text) for text in rows["text"]]
    settings = EvaluateConfig(models=("m",), data=("d",), output="o")
    with publish(str(tmp_path / "corpus"), stage="curate", inputs={}, config=settings) as draft:
        (draft.dir / "kept").mkdir()
        pq.write_table(pa.table(rows), draft.dir / "kept" / "0.parquet")
    found = from_corpus(str(tmp_path / "corpus"), 100).found
    assert [pair[1]["content"] for pair in found] == [f"    return x + {n}" for n in range(5)]
    with pytest.raises(ValueError, match=r"sterna curate.*makes it"):
        from_corpus(str(tmp_path), 10)
