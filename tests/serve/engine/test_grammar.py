"""Grammars: whatever is drawn under a guide is what the grammar allows, for every kind of tokenizer; guides leave no trace of drafts."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine import grammar
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.grammar import Grammars, Guide
from serve.engine.request import Request, Sampling
from serve.engine.text import Tokenizer

END = 0
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["red", "naïve", "Łódź", "日本🐦"]}, "maxItems": 2},
    },
    "required": ["name", "count", "tags"],
    "additionalProperties": False,
}

TAGGED = {"type": "tag", "begin": "<call>", "content": {"type": "json_schema", "json_schema": SCHEMA}, "end": "</call>"}


def matches_schema(text: str) -> bool:
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


CASES: dict[str, tuple[Sampling, Callable[[str], Any]]] = {
    "json schema": (Sampling(json_schema=json.dumps(SCHEMA)), matches_schema),
    "regex": (Sampling(regex=r"[a-c]{2,4}-\d+é?"), lambda text: re.fullmatch(r"[a-c]{2,4}-\d+é?", text)),
    "grammar": (
        Sampling(grammar='root ::= ("yes" | "no") " " tail\ntail ::= [a-z] | [a-z] tail'),
        lambda text: re.fullmatch("(yes|no) [a-z]+", text),
    ),
    "structural tag": (
        Sampling(structural_tag=json.dumps({"type": "structural_tag", "format": TAGGED})),
        lambda text: matches_schema(text.removeprefix("<call>").removesuffix("</call>")),
    ),
}


@pytest.fixture(scope="module")
def tokenizers(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Byte-level BPE; and words in SentencePiece's manner, with a fallback to bytes."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models

    folder = tmp_path_factory.mktemp("fallback")
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *'abcdefgnotxyz019-{}[]":,', "na", '":', "▁a", "日", '{"']
    fast = Fast(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.add_special_tokens(["<unk>"])
    fast.save(str(folder / "tokenizer.json"))
    return {"byte-level": Tokenizer(tiny_model_dir), "fallback": Tokenizer(folder)}


def guide_of(tokenizer: Tokenizer, sampling: Sampling, spare: int = 5) -> tuple[Guide, int]:
    """A guide over a vocabulary with some ids that no token has, and the vocabulary's size."""
    size = tokenizer.vocab_size + spare
    found = Grammars(tokenizer, size).guide(sampling, [END])
    assert found is not None
    return found, size


def walk(guide: Guide, vocab_size: int, rng: random.Random, longest: int = 300) -> list[int] | None:
    """Tokens drawn at random among the allowed, ending as soon as it is allowed; None if that takes too long."""
    tokens: list[int] = []
    while not guide.ended and len(tokens) < longest:
        allowed = np.flatnonzero(~guide.forbidden([], vocab_size)[0]).tolist()
        if END in allowed:
            return tokens
        tokens.append(rng.choice(allowed))
        assert guide.append(tokens[-1]) == guide.ended
    return tokens if guide.ended else None


@pytest.mark.parametrize("tokenizer", ["byte-level", "fallback"])
@pytest.mark.parametrize("case", CASES)
def test_whatever_the_guide_allows_is_of_the_grammar(tokenizers: dict[str, Tokenizer], tokenizer: str, case: str) -> None:
    sampling, holds = CASES[case]
    num_finished = 0
    for seed in range(12):
        guide, size = guide_of(tokenizers[tokenizer], sampling)
        tokens = walk(guide, size, random.Random(seed))
        if tokens is not None:
            num_finished += 1
            assert all(token < tokenizers[tokenizer].vocab_size for token in tokens)
            assert holds(tokenizers[tokenizer].decode(tokens))
    assert num_finished >= 6


def test_the_end_is_allowed_where_the_grammar_may_end_and_nowhere_else(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    guide, size = guide_of(tokenizer, Sampling(regex="a+b"))
    a, b = (tokenizer.token_id(name) for name in "ab")
    assert a is not None
    assert b is not None
    seen = [not guide.forbidden([], size)[0][END]]
    for token in (a, a, b):
        seen.append(guide.append(token))
    assert seen == [False, False, False, True]
    open_ended, _ = guide_of(tokenizer, Sampling(regex="a+"))
    assert not open_ended.append(a), "more may follow, and so may the end"
    assert not open_ended.forbidden([], size)[0][END]


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), num_known=st.integers(0, 6), num_good=st.integers(0, 6), bad=st.booleans())
def test_a_draft_is_seen_position_by_position_and_leaves_no_trace(
    tokenizers: dict[str, Tokenizer], seed: int, num_known: int, num_good: int, bad: bool
) -> None:
    rng = random.Random(seed)
    tokenizer = tokenizers["byte-level"]
    one, size = guide_of(tokenizer, CASES["json schema"][0])
    text = walk(one, size, rng, longest=num_known + num_good + 1) or []
    guide, _ = guide_of(tokenizer, CASES["json schema"][0])
    for token in text[:num_known]:
        guide.append(token)
    draft = text[num_known : num_known + num_good] + ([tokenizer.vocab_size + 1] if bad else [])
    good = draft[: len(draft) - bad]
    before = guide.forbidden([], size)
    rows = guide.forbidden(draft, size)
    assert guide.fit(draft)[0] == len(good)
    assert np.array_equal(guide.forbidden([], size), before)
    assert not rows[len(good) + 1 :].any(), "behind a forbidden token nothing counts"
    for i, token in enumerate(good):
        assert np.array_equal(rows[i], guide.forbidden([], size)[0])
        if guide.append(token):
            break


def test_forced_text_is_told(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    guide, _ = guide_of(tokenizer, Sampling(json_schema='{"type": "object", "properties": {"kilometres": {"type": "null"}}}'))
    accepted, forced = guide.fit(tokenizer.encode('{"k'))
    assert forced.startswith("ilometres")
    assert accepted > 0


@pytest.mark.parametrize(("texts", "forced"), [(["Łódź"], "Łódź"), (["日", "本", "旧"], "")])
def test_forced_text_is_whole_characters(tokenizers: dict[str, Tokenizer], texts: list[str], forced: str) -> None:
    options = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    guide, _ = guide_of(tokenizers["byte-level"], Sampling(grammar=f"root ::= {options}"))
    assert guide.fit([]) == (0, forced), "all begin alike, but not with a character"
    tokens = tokenizers["byte-level"].encode(texts[0])
    assert len(tokens) > len(texts[0]), "tokens are parts of characters"
    for token in tokens[:-1]:
        guide.append(token)
        assert guide.fit([])[0] == 0


@pytest.mark.parametrize("grammar", ['root ::= "a" root', 'root ::= "b" | "a" x\nx ::= "c" x', 'root ::= "a"{100000}'])
def test_forced_text_without_an_end_in_sight_is_not_asked_for(tokenizers: dict[str, Tokenizer], grammar: str) -> None:
    tokenizer = tokenizers["byte-level"]
    guide, _ = guide_of(tokenizer, Sampling(grammar=grammar))
    guide.append(tokenizer.encode_plain("a")[0])
    assert guide.fit(tokenizer.encode_plain("c")) in [(0, ""), (1, "")]


@pytest.mark.parametrize(
    "fields",
    [
        {"json_schema": '{"type": "nope"}'},
        {"json_schema": "nothing"},
        {"json_schema": '{"const": 1e400}'},
        {"json_schema": '{"not": {}}'},
        {"json_schema": '{"$ref": "#/nowhere"}'},
        {"regex": "a(("},
        {"regex": r"\bword"},
        {"regex": ""},
        {"grammar": "root ::= (("},
        {"grammar": 'stem ::= "a"'},
        {"grammar": 'root ::= ""'},
        {"structural_tag": "nothing"},
        {"structural_tag": "[]"},
        {"structural_tag": '{"type": "structural_tag"}'},
        {"structural_tag": '{"type": "structural_tag", "format": {"type": "grammar", "grammar": "root ::= nowhere"}}'},
    ],
)
def test_what_cannot_be_a_grammar_is_refused_in_one_line(tokenizers: dict[str, Tokenizer], fields: dict[str, str]) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=rf"^{name}: ") as error:
        guide_of(tokenizers["byte-level"], Sampling(**fields))
    assert "\n" not in str(error.value)
    assert ".cc" not in str(error.value)


def test_a_schema_in_a_structural_tag_keeps_the_rules_of_schemas(tokenizers: dict[str, Tokenizer]) -> None:
    tag = {"type": "sequence", "elements": [{"type": "json_schema", "json_schema": {"not": {}}}]}
    with pytest.raises(ValueError, match=r"^json_schema: 'not' is not supported"):
        guide_of(tokenizers["byte-level"], Sampling(structural_tag=json.dumps({"type": "structural_tag", "format": tag})))


def test_text_between_tags_is_free(tokenizers: dict[str, Tokenizer]) -> None:
    tags = {"type": "triggered_tags", "triggers": ["<call>"], "tags": [TAGGED]}
    sampling = Sampling(structural_tag=json.dumps({"type": "structural_tag", "format": tags}))
    call = '<call>{"name": "a", "count": 1, "tags": []}</call>'
    for text, held in ((f"well, {call} and {call} or", True), ("<call>well", False), ("<cal well", True)):
        guide, _ = guide_of(tokenizers["byte-level"], sampling)
        try:
            ended = [guide.append(token) for token in tokenizers["byte-level"].encode(text)]
        except ValueError:
            ended = [True]
        assert any(ended) != held, text


def test_a_tokenizer_without_bytes_cannot_be_held_to_a_grammar(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models

    fast = Fast(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    fast.decoder = decoders.WordPiece()
    fast.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"^grammar: this model's tokenizer"):
        guide_of(Tokenizer(tmp_path), Sampling(regex="a"))


def test_the_cache_of_compiled_grammars_is_bounded(tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "_CACHE_BYTES", 20_000)
    grammars = Grammars(tokenizers["byte-level"], 400)
    for number in range(40):
        grammars.guide(Sampling(regex=f"[a-z]{{{number + 1}}}x"), [END])
    assert 0 < grammars._compiler.get_cache_size_bytes() < 40_000


def test_what_was_prepared_in_other_threads_is_only_looked_up(tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    grammars, made, schema = Grammars(tokenizers["byte-level"], 400), [], Sampling(json_schema='{"type": "integer"}')
    plain = grammar._compiler
    monkeypatch.setattr(grammar, "_compiler", lambda *given: (made.append(threading.current_thread().name), plain(*given))[1])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(grammars.prepare, [schema, Sampling(regex="a+"), Sampling(), schema]))
    held = grammars._compiler.get_cache_size_bytes()
    assert grammars.guide(schema, [END]) is not None
    assert (len(made), grammars._compiler.get_cache_size_bytes()) == (1, held)
    with pytest.raises(ValueError, match=r"^regex"):
        grammars.prepare(Sampling(regex="("))


def drained(engine: Engine, request: Request) -> tuple[tuple[int, ...], str, str | None]:
    engine.add(request)
    tokens: tuple[int, ...] = ()
    text, reason = "", None
    while engine.has_work:
        for emission in engine.step():
            tokens, text, reason = tokens + emission.tokens, text + emission.text, emission.finish_reason
    return tokens, text, reason


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_complete_text_ends_the_request_even_without_an_end_token(tiny_model_dir: Path, ignore_eos: bool) -> None:
    engine = Engine.load(tiny_model_dir, EngineConfig(dtype="float32"))
    sampling = Sampling(regex="[ab]{3}", max_tokens=20, seed=1, ignore_eos=ignore_eos)
    tokens, text, reason = drained(engine, Request(id="a", prompt=(5, 6), sampling=sampling))
    assert re.fullmatch("[ab]{3}", text)
    assert reason == "stop"
    again = drained(engine, Request(id="a", prompt=(5, 6), sampling=sampling, emitted=tokens[:1]))
    assert again[0] == tokens[1:]
    with pytest.raises(ValueError, match="emitted: token 9 is not allowed"):
        engine.add(Request(id="b", prompt=(5, 6), sampling=sampling, emitted=(9,)))
    assert not engine.has_work


def test_nothing_of_it_is_imported_before_it_is_needed() -> None:
    code = "import sys, serve.engine.engine; sys.exit('xgrammar' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_a_bad_grammar_is_refused_by_add_and_leaves_nothing(tiny_model_dir: Path) -> None:
    engine = Engine.load(tiny_model_dir, EngineConfig(dtype="float32"))
    sequence: Sequence[int] = (5, 6)
    with pytest.raises(ValueError, match=r"^regex: cannot be used: "):
        engine.add(Request(id="a", prompt=tuple(sequence), sampling=Sampling(regex="a((")))
    assert not engine.has_work


def test_without_xgrammar_one_line_says_what_to_install(tiny_model_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "xgrammar", None)  # what a failing import leaves
    with pytest.raises(ValueError, match=r"regex: needs the package xgrammar.*sterna\[grammar\]"):
        Grammars(Tokenizer(tiny_model_dir), 64).guide(Sampling(regex="a+"), [END])
