"""Calls with elements: read as written, however they are cut; values by their schema; what is no call is content."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.api.calls import Arguments, Called
from serve.api.xml_calls import GLM, QWEN, Elements, XmlCallReader
from tests.serve.pieces import CUTS, cut, gathered

SCHEMAS = {"f": {"properties": {"text": {"type": "string"}, "count": {"type": "integer"}, "deep": {"type": "object"}}}, "now": {}}
FORMS = {"qwen": QWEN, "glm": GLM}


def written(elements: Elements, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """Calls as a model of this form writes them."""
    each = []
    for name, arguments in calls:
        values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
        if elements is QWEN:
            inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
            each.append(f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>")
        else:
            inner = "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in values.items())
            each.append(f"<tool_call>{name}\n{inner}</tool_call>")
    return "\n".join(each)


def read(elements: Elements, pieces: list[str], most: int | None = None) -> tuple[str, list[list[str]]]:
    reader = XmlCallReader(elements, SCHEMAS, most)
    return gathered([piece for text in pieces for piece in reader.push(text)] + reader.finish())


TEXT = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=8).filter(lambda text: text == text.strip("\n"))
ARGUMENTS = st.fixed_dictionaries(
    {}, optional={"text": TEXT, "count": st.integers(), "deep": st.dictionaries(TEXT, st.integers(), max_size=2)}
)
CALLS = st.lists(st.tuples(st.just("f"), ARGUMENTS) | st.tuples(st.just("now"), st.just({})), min_size=1, max_size=3)


@pytest.mark.parametrize("form", FORMS)
@given(calls=CALLS, at=CUTS)
def test_calls_are_read_as_they_were_written(form: str, calls: list[tuple[str, Any]], at: list[int]) -> None:
    text = f"Well.\n{written(FORMS[form], calls)}\n"
    content, found = read(FORMS[form], cut(text, at))
    assert content == "Well."
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls


MARKS = [
    "<tool_call>",
    "</tool_call>",
    "<function=f>",
    "</function>",
    "<parameter=count>",
    "</parameter>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
]


@pytest.mark.parametrize("form", FORMS)
@given(parts=st.lists(st.sampled_from([*MARKS, "f", "3", "\n", " ", "x<", "</arg_value>"]), max_size=14), at=CUTS)
def test_any_text_is_read_the_same_however_it_is_cut(form: str, parts: list[str], at: list[int]) -> None:
    text = "".join(parts)
    assert read(FORMS[form], cut(text, at)) == read(FORMS[form], [text])


@pytest.mark.parametrize(
    "text", ["plain", "<tool_call>well", "<tool_call>gone\n</tool_call> x", "a <tool_cal", "<tool_call><function=gone></function>"]
)
def test_what_is_no_call_is_content(text: str) -> None:
    for elements in FORMS.values():
        assert read(elements, list(text)) == (text, [])


def test_values_are_what_the_schema_says() -> None:
    text = written(QWEN, [("f", {"text": "12", "count": 12, "deep": {"a": 1}})])
    assert json.loads(read(QWEN, [text])[1][0][1]) == {"text": "12", "count": 12, "deep": {"a": 1}}
    odd = "<tool_call>\n<function=f>\n<parameter=count>\nmany\n</parameter>\n</function>\n</tool_call>"
    assert read(QWEN, [odd])[1] == [["f", '{"count": "many"}']]


def test_an_argument_is_passed_on_when_it_is_whole() -> None:
    reader = XmlCallReader(QWEN, SCHEMAS)
    assert reader.push("<tool_call>\n<function=f>\n<parameter=count>\n1") == [Called(0, "f"), Arguments(0, "{")]
    assert reader.push("2\n</parameter>\n<par") == [Arguments(0, '"count": 12')]


def test_no_more_calls_than_are_wanted() -> None:
    assert read(GLM, [written(GLM, [("now", {}), ("now", {})])], most=1) == ("", [["now", "{}"]])
