"""Deltas, put together, are the message."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serve.api.calls import CallReader
from serve.api.convention import convention_of
from serve.api.message import Message

HERMES, _ = convention_of("tools <tool_call>", lambda mark: False)
TEXT = 'Yes.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'


def joined(deltas: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of deltas."""
    content, calls = "", []
    for delta in deltas:
        content += delta.get("content", "")
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(calls):
                calls.append({"id": call["id"], "type": call["type"], "function": dict(call["function"])})
            else:
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    message = {"role": "assistant", "content": content or None, "refusal": None, "tool_calls": calls}
    return message if calls else {"role": "assistant", "content": content, "refusal": None}


@given(st.lists(st.integers(min_value=0, max_value=len(TEXT)), max_size=10))
def test_deltas_make_the_message(at: list[int]) -> None:
    assert HERMES is not None
    message = Message(CallReader(HERMES, ["f", "g"]))
    bounds = [0, *sorted(at), len(TEXT)]
    deltas = [message.add(TEXT[a:b]) for a, b in pairwise(bounds)] + [message.finish()]
    whole = message.whole()
    assert joined(deltas) == whole
    assert whole["content"] == "Yes."
    assert [call["function"] for call in whole["tool_calls"]] == [{"name": "f", "arguments": '{"a": 1}'}, {"name": "g", "arguments": "{}"}]
    assert len({call["id"] for call in whole["tool_calls"]}) == 2


def test_without_tools_text_is_content() -> None:
    message = Message(None)
    assert [message.add(TEXT), message.add(""), message.finish()] == [{"content": TEXT}, {}, {}]
    assert message.whole() == {"role": "assistant", "content": TEXT, "refusal": None}


@given(st.integers(min_value=0, max_value=len(TEXT)))
def test_an_answer_that_must_be_calls_shows_no_marks_wherever_it_is_cut(at: int) -> None:
    assert HERMES is not None
    calls = TEXT.removeprefix("Yes.\n")
    message = Message(CallReader(HERMES, ["f", "g"]), only_calls=True)
    deltas = [message.add(calls[:at]), message.finish()]
    assert not any("content" in delta for delta in deltas)
    assert not message.whole()["content"]
