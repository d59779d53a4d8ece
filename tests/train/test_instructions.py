from __future__ import annotations

import ast
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.instructions import REQUEST, pairs_from_code, parse_conversation

SOURCE = '''
import os

class Shape:
    """A shape."""

    def area(self, scale: float = 1.0) -> float:
        """Area of the shape.

        Scaled.
        """
        inner = self.width * self.height

        return inner * scale

    async def load(self):
        "Load it."
        return await self.reader()

def stub():
    """Nothing here."""
    raise NotImplementedError

def undocumented(x):
    return x + 1

def outer():
    """Make a function."""
    def inner():
        """The inner one."""
        return os.getpid()
    return inner
'''


def test_each_documented_function_becomes_a_pair():
    pairs = pairs_from_code(SOURCE)
    heads = [pair[0]["content"].removeprefix(REQUEST).strip().splitlines()[0] for pair in pairs]
    assert heads == ["def area(self, scale: float = 1.0) -> float:", "async def load(self):", "def outer():", "def inner():"]
    assert pairs[0][1]["content"] == "    inner = self.width * self.height\n\n    return inner * scale"
    assert all([m["role"] for m in pair] == ["user", "assistant"] for pair in pairs)


def test_head_and_body_together_are_the_function_again():
    for pair in pairs_from_code(SOURCE):
        head = pair[0]["content"].removeprefix(REQUEST).strip("\n")
        parsed = ast.parse(f"{head}\n{pair[1]['content']}\n").body
        assert len(parsed) == 1
        assert isinstance(parsed[0], ast.FunctionDef | ast.AsyncFunctionDef)
        assert parsed[0].name in {"area", "load", "outer", "inner"}


@pytest.mark.parametrize("text", ["def broken(:\n", "\0", "x = '\\d'\n", "def f(): 'doc'; return 1\n", "(" * 500])
def test_what_does_not_parse_or_has_no_body_gives_nothing(text: str):
    assert pairs_from_code(text) == []


def test_the_standard_library_gives_bounded_deterministic_pairs():
    text = Path(random.__file__).read_text()
    pairs = pairs_from_code(text)
    assert len(pairs) > 15
    assert pairs == pairs_from_code(text)
    assert all(12 <= len(p[1]["content"]) <= 1500 for p in pairs)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(min_size=1).filter(str.strip)), min_size=1, max_size=5))
def test_a_conversation_survives_the_round_trip_or_has_a_reason(turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    line = json.dumps({"messages": messages})
    if messages[0]["role"] == "assistant" or all(m["role"] != "assistant" for m in messages):
        with pytest.raises(ValueError, match="no_answer"):
            parse_conversation(line)
    else:
        assert parse_conversation(line) == messages


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not_json"), ("[]", "no_messages"), ('{"messages": []}', "no_messages"), ('{"text": "x"}', "no_messages"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "bad_message"),
        ('{"messages": [{"role": "user", "content": 3}]}', "bad_message"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}', "no_answer"),
    ],
)  # fmt: skip
def test_bad_lines_have_a_reason(line: str, reason: str):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        parse_conversation(line)
