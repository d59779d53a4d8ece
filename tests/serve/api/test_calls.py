"""Tool calls in text: every convention, every cut into pieces, and what only looks like a call."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.api.calls import Arguments, Called, CallReader, Content
from serve.api.convention import _KNOWN, PLAIN, Convention
from tests.serve.pieces import CUTS, cut, gathered

CONVENTIONS = {convention.name: convention for convention in (*_KNOWN, PLAIN) if not convention.is_xml}
HERMES = CONVENTIONS["hermes"]


def written(convention: Convention, calls: list[tuple[str, Any]]) -> str:
    """Calls as a model of this convention writes them."""
    texts = []
    for name, arguments in calls:
        given = json.dumps(arguments, ensure_ascii=False)
        plain = f'{{"name": "{name}", "{convention.arguments}": {given}}}'
        texts.append(f"{name}{convention.name_end}{given}" if convention.name_end else plain)
    if convention.name in ("mistral", "granite"):
        return f"{convention.begin}[{', '.join(texts)}]"
    each = [f"{convention.begin}{convention.gap}{text}{convention.gap}{convention.end}" for text in texts]
    opening, closing = convention.around or ("", "")
    return opening + convention.separator.join(each) + closing


def read(convention: Convention, pieces: list[str], most: int | None = None) -> tuple[str, list[list[str]]]:
    reader = CallReader(convention, ["f", "get_weather"], most)
    return gathered([piece for text in pieces for piece in reader.push(text)] + reader.finish())


VALUES = st.recursive(st.integers() | st.booleans() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3), max_leaves=4)
CALLS = st.lists(
    st.tuples(st.sampled_from(["f", "get_weather"]), st.dictionaries(st.text(max_size=5), VALUES, max_size=3)), min_size=1, max_size=3
)
WORDS = st.text(alphabet="ab <[{}]\"'\n,;té", max_size=12)


@pytest.mark.parametrize("name", CONVENTIONS)
@given(calls=CALLS, at=CUTS)
def test_calls_are_read_as_they_were_written(name: str, calls: list[tuple[str, Any]], at: list[int]) -> None:
    text = written(CONVENTIONS[name], calls)
    content, found = read(CONVENTIONS[name], cut(text, at))
    assert content == ""
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls


@pytest.mark.parametrize("name", [name for name, convention in CONVENTIONS.items() if convention.begin])
@given(calls=CALLS, before=WORDS, after=WORDS, at=CUTS)
def test_what_stands_around_calls_is_content(name: str, calls: list[tuple[str, Any]], before: str, after: str, at: list[int]) -> None:
    text = f"{before}x\n\n{written(CONVENTIONS[name], calls)}\nx{after}"
    content, found = read(CONVENTIONS[name], cut(text, at))
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    assert content.split() == f"{before}x\n\nx{after}".split()


@pytest.mark.parametrize("name", CONVENTIONS)
@given(
    parts=st.lists(WORDS | st.sampled_from([*HERMES.marks, '{"name": "f", "arguments": {', "}", '"x": 1', "[TOOL_CALLS]", "f[ARGS]{"])),
    at=CUTS,
)
def test_any_text_is_read_the_same_however_it_is_cut(name: str, parts: list[str], at: list[int]) -> None:
    text = "".join(parts)
    assert read(CONVENTIONS[name], cut(text, at)) == read(CONVENTIONS[name], [text])


@pytest.mark.parametrize("name", CONVENTIONS)
@given(text=WORDS)
def test_text_without_calls_is_itself(name: str, text: str) -> None:
    assert read(CONVENTIONS[name], list(text)) == (text, [])


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
        "<tool_call>well</tool_call>",
        '<tool_call>{"name": "f", "arguments": {',
        '<tool_call>{"colour": "f"}</tool_call>',
        "<tool_call>",
        "<tool_ca",
    ],
)
def test_what_is_no_call_is_content_or_is_a_call_cut_short(text: str) -> None:
    content, calls = read(HERMES, list(text))
    assert (content, calls) == ((text, []) if "{}" in text or "f" not in text or "colour" in text else ("", [["f", "{"]]))


def test_keys_in_another_order_and_arguments_as_text_are_understood() -> None:
    assert read(HERMES, ['<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>']) == ("", [["f", '{"a": 1}']])
    assert read(HERMES, ['<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>']) == ("", [["f", '{"a": 1}']])
    assert read(HERMES, ['<tool_call>{"type": "function", "function": {"name": "f", "parameters": {}}}</tool_call>']) == ("", [["f", "{}"]])
    assert read(CONVENTIONS["llama"], ['{"name": "f"}']) == ("", [["f", "{}"]])


def test_a_json_answer_is_no_call() -> None:
    for text in ('{"answer": 42}', '{"name": "Ada", "arguments": {"a": 1}}', "[1, 2]"):
        assert read(PLAIN, list(text)) == (text, [])


def test_no_more_calls_than_are_wanted() -> None:
    text = written(HERMES, [("f", {"a": 1}), ("f", {"a": 2})])
    assert read(HERMES, list(text), most=1) == ("", [["f", '{"a": 1}']])


def test_arguments_are_passed_on_as_they_come() -> None:
    reader = CallReader(HERMES, ["f"])
    assert reader.push('ok\n<tool_call>\n{"name": "f", "arguments": {"a": [1') == [Content("ok"), Called(0, "f"), Arguments(0, '{"a": [1')]
    assert reader.push(", 2]}}\n</tool") == [Arguments(0, ", 2]}")]
    assert reader.push("_call>") == []
    assert reader.finish() == []
