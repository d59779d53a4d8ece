"""Tools: what a choice allows, and that an answer held to it is calls with arguments that their schemas allow."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from serve.api.calls import Called, Content
from serve.api.convention import _KNOWN
from serve.api.message import Message
from serve.api.tools import NO_PARAMETERS, Toolbox
from serve.engine.grammar import Grammars
from serve.engine.request import Sampling
from serve.engine.text import Tokenizer
from serve.protocol import ApiError
from tests.serve.bodies import chat

CONVENTIONS = {convention.name: convention for convention in _KNOWN}
HERMES = CONVENTIONS["hermes"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Wien", "Łódź"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "forecast", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
SCHEMAS = {"forecast": SCHEMA, "now": NO_PARAMETERS}
ANSWER = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER}}
END = 0


def box_of(name: str = "hermes", special: bool = False, **fields: Any) -> tuple[Toolbox, dict[str, Any]]:
    """The toolbox of a body, and what its answer is held to."""
    body = chat(**{"tools": TOOLS, **fields})
    box = body.toolbox((CONVENTIONS[name], special))
    assert box is not None
    return box, body.held(box)


def drawn(tokenizer: Tokenizer, held: dict[str, Any], rng: random.Random, begin: str = "", most: int = 400) -> str | None:
    """A text that the grammar allows, from a given beginning; None if it has no end in time."""
    guide = Grammars(tokenizer, 400).guide(Sampling(**held), [END])
    assert guide is not None
    tokens = tokenizer.encode_plain(begin)
    for token in tokens:
        guide.append(token)
    while not guide.ended and len(tokens) < most:
        allowed = np.flatnonzero(~guide.forbidden([], 400)[0]).tolist()
        if END in allowed:
            break
        tokens.append(rng.choice(allowed))
        guide.append(tokens[-1])
    return tokenizer.decode(tokens) if len(tokens) < most else None


def calls_of(box: Toolbox, text: str) -> dict[str, Any]:
    message = Message(box.reader())
    message.add(text)
    message.finish()
    return message.whole()


@pytest.mark.parametrize(
    ("name", "special"), [(name, special) for name in CONVENTIONS for special in (False, True) if not (special and name == "llama")]
)
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "forecast"}}])
def test_an_answer_that_must_be_calls_is(tiny_model_dir: Path, name: str, special: bool, choice: Any) -> None:
    tokenizer = Tokenizer(tiny_model_dir)
    box, held = box_of(name, special, tool_choice=choice)
    finished = 0
    for seed in range(8):
        text = drawn(tokenizer, held, random.Random(seed))
        if text is None:
            continue
        finished += 1
        message = calls_of(box, text)
        assert message["content"] is None
        for call in message["tool_calls"]:
            jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]])
        if choice != "required":
            assert [call["function"]["name"] for call in message["tool_calls"]] == ["forecast"]
    assert finished >= 4


def test_a_strict_function_is_held_to_its_schema_where_the_model_calls_it(tiny_model_dir: Path) -> None:
    strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
    for name in ("hermes", "llama"):
        box, held = box_of(name, tools=strict)
        begin = "Well, <tool_call>" if name == "hermes" else '{"name"'
        text = next(t for seed in range(20) if (t := drawn(Tokenizer(tiny_model_dir), held, random.Random(seed), begin)))
        (call,) = calls_of(box, text)["tool_calls"]
        jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)
        assert drawn(Tokenizer(tiny_model_dir), held, random.Random(0), "Well, {") is not None or name == "hermes"


def test_beside_a_format_the_answer_is_calls_or_that(tiny_model_dir: Path) -> None:
    tokenizer = Tokenizer(tiny_model_dir)
    for name, special, begin in (("hermes", False, "<tool"), ("mistral", True, '{"name')):
        box, held = box_of(name, special, response_format=FORMAT)
        calls, formatted = (
            next(text for seed in range(20) if (text := drawn(tokenizer, held, random.Random(seed), each))) for each in (begin, '{"o')
        )
        assert calls_of(box, calls)["content"] is None
        jsonschema.validate(json.loads(calls_of(box, formatted)["content"]), ANSWER)
        with pytest.raises(ValueError, match="not allowed"):
            drawn(tokenizer, held, random.Random(0), "Well")


def test_without_need_nothing_is_held() -> None:
    assert box_of()[1] == {}
    assert box_of("mistral", True)[1] == {"skip_special_tokens": False}
    assert chat(tools=TOOLS, tool_choice="none").toolbox((HERMES, False)) is None
    assert chat(tools=[]).toolbox((None, False)) is None


def test_one_call_at_a_time() -> None:
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    for fields, wanted in (
        ({"parallel_tool_calls": False}, 1),
        ({}, 2),
        ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, 1),
    ):
        box, _ = box_of(**fields)
        pieces = [*box.reader().push(call + "\n" + call)]
        assert sum(isinstance(piece, Called) for piece in pieces) == wanted


def test_allowed_tools_are_the_only_ones() -> None:
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "now"}}]}
    box, held = box_of(tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert "structural_tag" in held
    assert "forecast" not in held["structural_tag"]
    pieces = box.reader().push('<tool_call>\n{"name": "forecast", "arguments": {}}')
    assert isinstance(pieces[0], Content)
    assert box_of(tool_choice={"type": "allowed_tools", "allowed_tools": {**allowed, "mode": "required"}})[0].mode == "required"


@pytest.mark.parametrize(
    ("fields", "found", "message"),
    [
        ({}, (None, False), "tools: this model's chat template shows none"),
        ({"tool_choice": {"type": "function", "function": {"name": "gone"}}}, (HERMES, False), "tool_choice: 'gone' is none of the tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, (HERMES, True), "leave strict out"),
    ],
)
def test_what_cannot_be_done_is_refused(fields: dict[str, Any], found: Any, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        chat(**{"tools": TOOLS, **fields}).toolbox(found)
    assert caught.value.status == 400
    assert caught.value.param == message.split(":")[0] or caught.value.param == "tools"
