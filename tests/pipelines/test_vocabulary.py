"""The tokenizer: any text comes back, spelled special tokens are text, and a folder that cannot be used says why."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.vocabulary import SPECIAL_TOKENS, Vocabulary, copy_tokenizer, open_tokenizer, save_tokenizer, train_tokenizer

TEXTS = ["The tern flies from pole to pole and back again.", "def add(left, right):\n    return left + right\n", "naïve 日本語 🐦"] * 5
ANY_TEXT = st.lists(st.text() | st.sampled_from([*SPECIAL_TOKENS, "<|end", "oftext|>", " the tern", "\r\n"]), max_size=8).map("".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "made"
    save_tokenizer(train_tokenizer(TEXTS, 320), folder)
    return folder


@pytest.fixture(scope="module")
def vocabulary(folder) -> Vocabulary:
    return open_tokenizer(folder)


@given(st.lists(ANY_TEXT, max_size=4))
def test_any_text_comes_back_and_none_of_it_is_a_special_token(vocabulary, texts):
    encoded = vocabulary.encode(texts)
    assert [vocabulary.decode(ids) for ids in encoded] == texts
    assert all(len(SPECIAL_TOKENS) <= token < vocabulary.size for ids in encoded for token in ids)


def test_special_tokens_have_the_first_ids_in_their_order(vocabulary):
    assert [vocabulary.decode([token]) for token in range(len(SPECIAL_TOKENS))] == list(SPECIAL_TOKENS)
    assert (vocabulary.end, vocabulary.pad) == (0, 1)


def test_training_is_deterministic_learns_and_keeps_to_its_size(vocabulary):
    assert train_tokenizer(iter(TEXTS), 320) == vocabulary.serialized
    assert vocabulary.size <= 320
    (ids,) = vocabulary.encode(TEXTS[:1])
    assert len(ids) < len(TEXTS[0].encode()) / 2
    bare = Vocabulary(train_tokenizer([], 320), 0, 0, 1)
    assert bare.decode(*bare.encode(["tern 🐦\x00"])) == "tern 🐦\x00", "bytes are the alphabet, seen or not"


def test_a_task_gets_the_same_tokenizer(vocabulary):
    moved = pickle.loads(pickle.dumps(vocabulary))
    assert moved == vocabulary
    assert moved.encode(TEXTS) == vocabulary.encode(TEXTS)


def test_a_copy_is_the_same_tokenizer_and_leaves_the_weights(folder, tmp_path, vocabulary):
    source = tmp_path / "model"
    shutil.copytree(folder, source)
    (source / "model.safetensors").write_bytes(b"weights")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    copy_tokenizer(source, tmp_path / "a" / "copy")
    assert open_tokenizer(tmp_path / "a" / "copy") == vocabulary
    assert {file.name for file in (tmp_path / "a" / "copy").iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "end_and_pad"),
    [
        ({"eos_token": "<|user|>"}, (2, 2)),  # without a token to pad with, the one that ends
        ({"eos_token": {"content": "<|user|>"}, "pad_token": {"content": "<|pad|>"}}, (2, 1)),
        ({"eos_token": "<|endoftext|>", "pad_token": "nowhere"}, (0, 0)),
        ({"eos_token": "<|endoftext|>", "pad_token": 5}, (0, 0)),
    ],
)
def test_tokens_are_named_plainly_or_as_objects(folder, tmp_path, config, end_and_pad):
    shutil.copy(folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = open_tokenizer(tmp_path)
    assert (found.end, found.pad) == end_and_pad


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "no tokenizer.json here"),
        ("tokenizer_config.json", None, "no tokenizer_config.json here"),
        ("tokenizer.json", "{}", "not a tokenizer that can be read"),
        ("tokenizer_config.json", "{broken", "not a tokenizer that can be read"),
        ("tokenizer_config.json", "3", "not a tokenizer that can be read"),
        ("tokenizer_config.json", "[]", "names no eos_token of the vocabulary"),
        ("tokenizer_config.json", '{"eos_token": null}', "names no eos_token of the vocabulary"),
        ("tokenizer_config.json", '{"eos_token": "</s>"}', "names no eos_token of the vocabulary"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line_and_copies_nothing(folder, tmp_path, name, content, message):
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    (source / name).unlink()
    if content is not None:
        (source / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        copy_tokenizer(source, tmp_path / "copy")
    assert "\n" not in str(error.value)
    assert str(source) in str(error.value)
    assert not (tmp_path / "copy").exists()
