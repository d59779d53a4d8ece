"""The conventions of chat templates, told by their own words."""

from __future__ import annotations

import pytest

from serve.api.convention import convention_of

QWEN = '{%- if tools %}… within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}'
LLAMA = (
    '{%- if tools is not none %}Respond in the format {\'{"name": function name, "parameters": dictionary of argument name and value}.\'}'
)
MISTRAL = '{%- if tools is not none %}[AVAILABLE_TOOLS]{{ tools }}[/AVAILABLE_TOOLS]{% endif %}{{ "[TOOL_CALLS] [" }}'
DEEPSEEK = "{% if tools %}{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>'}}"
GRANITE = "{%- if tools %}{{ '<|start_of_role|>available_tools' }}… <|tool_call|> …"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (QWEN, "hermes"),
        (LLAMA, "llama"),
        (MISTRAL, "mistral"),
        (MISTRAL.replace("[TOOL_CALLS] [", "[TOOL_CALLS]f[ARGS]"), "mistral-args"),
        (DEEPSEEK, "deepseek"),
        (GRANITE, "granite"),
        ("{% if tools %}<tool_call>\n<function=example>", "qwen-xml"),
        ("{% if tools %}<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>", "glm"),
        ("{% if tools %}{{ tools }}", None),
        ("{{ messages }}", None),
        (None, None),
    ],
)
def test_a_template_tells_its_convention(template: str | None, name: str | None) -> None:
    found, special = convention_of(template, lambda mark: False)
    assert (found and found.name, special) == (name, False)


def test_marks_that_are_special_tokens_are_told() -> None:
    assert convention_of(MISTRAL, lambda mark: "[TOOL_CALLS]" in mark)[1]
    assert not convention_of(QWEN, lambda mark: "[TOOL_CALLS]" in mark)[1]
    assert not convention_of(LLAMA, lambda mark: True)[1], "it has no marks"
