"""What answers may be held to: exactly one way, and choices that are texts, not patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serve.engine.grammar import Grammars
from serve.engine.request import Sampling
from serve.engine.text import Tokenizer
from serve.structured import ResponseFormat, StructuredOutputs


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"json_object": False},
        {"regex": "a", "json_object": False, "grammar": "b"},
        {"choice": [""]},
        {"choice": []},
        {"wizard": 1},
        {"json": 5},
    ],
)
def test_exactly_one_way_is_given(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StructuredOutputs.model_validate(fields)
    assert StructuredOutputs.model_validate({"regex": "a", "json_object": False, "choice": None}).options == {"regex": "a"}


def test_a_schema_goes_with_its_type() -> None:
    schema = {"name": "x", "schema": {"type": "null"}, "strict": False}
    assert ResponseFormat.model_validate({"type": "json_schema", "json_schema": schema}).options == {"json_schema": '{"type": "null"}'}
    assert ResponseFormat.model_validate({"type": "text"}).options == {}
    for fields in ({"type": "json_schema"}, {"type": "text", "json_schema": schema}):
        with pytest.raises(ValidationError, match="goes with type json_schema"):
            ResponseFormat.model_validate(fields)


@pytest.mark.parametrize("text", ['say "hi"', "a|b", "[a-z]", "back\\slash", "two\nlines", "café 🐦", "tab\t"])
def test_a_choice_is_taken_literally(tiny_model_dir: Path, text: str) -> None:
    tokenizer = Tokenizer(tiny_model_dir)
    options = StructuredOutputs.model_validate({"choice": ["other", text]}).options
    guide = Grammars(tokenizer, 400).guide(Sampling(**options), [0])
    assert guide is not None
    assert [guide.append(token) for token in tokenizer.encode(text)][-1], "the text is allowed, and nothing after it"
