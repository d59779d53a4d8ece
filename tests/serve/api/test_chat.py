"""A conversation: what is refused, and what the template reads."""

from typing import Any

import pytest

from serve.protocol import ApiError
from tests.serve.bodies import chat

TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]}, "messages[0].content[0].type"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"messages": [{"role": "assistant"}]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": None, "function_call": {"name": "f"}}]}, "messages[0].function_call"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities[0]"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
    ],
)
def test_a_bad_chat_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_conversation_as_the_template_reads_it() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = chat(messages=[{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts, "name": "Ada"}])
    assert body.turns == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "ab"}]


def test_calls_and_results_as_the_template_reads_them() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    said = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "call_1", "content": "2"}]
    calling, result = chat(messages=said).turns
    assert calling["content"] == ""
    assert calling["tool_calls"] == [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    assert result == {"role": "tool", "content": "2", "tool_call_id": "call_1"}
    broken = {**call, "function": {"name": "f", "arguments": "{"}}
    (turn,) = chat(messages=[{"role": "assistant", "tool_calls": [broken]}]).turns
    assert turn["tool_calls"][0]["function"]["arguments"] == "{"


def test_the_template_is_shown_the_tools_that_may_be_called() -> None:
    assert chat(tools=TOOLS).template_variables == {"tools": TOOLS}
    assert chat(tools=TOOLS, tool_choice="none").template_variables == {}
    extra = {"enable_thinking": False}
    assert chat(tools=TOOLS, chat_template_kwargs=extra).template_variables == {"enable_thinking": False, "tools": TOOLS}
