"""Schemas: what a grammar would drop in silence is refused by its keyword; the rest passes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve.engine.schema import checked_schema


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"not": {"type": "string"}}, "'not'"),
        ({"type": "array", "items": {"type": "array", "uniqueItems": True}}, "'uniqueItems'"),
        ({"properties": {"a": {"if": {"minimum": 1}, "then": {"maximum": 2}}}}, "'if'"),
        ({"$defs": {"x": {"contains": {}}}}, "'contains'"),
        ({"allOf": [{"minimum": 1}, {"maximum": 3}]}, "'allOf' of more than one schema"),
        ({"$ref": "#/$defs/x", "minimum": 3, "$defs": {"x": {}}}, "'minimum' beside '$ref'"),
        ({"type": "object", "anyOf": [{}]}, "'type' beside 'anyOf'"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "'pattern' with a length"),
        ({"type": "object", "properties": {"b": {}}, "required": ["b", "a"]}, "'required' of 'a'"),
        ({"type": "object", "required": ["a"]}, "'required' of 'a'"),
        ({"$ref": "https://example.org/schema"}, "'$ref' to 'https://example.org/schema'"),
        ({"properties": {"a": {"$ref": "#anchor"}}}, "'$ref' to '#anchor'"),
        ({"$ref": 5}, "'$ref' to 5"),
    ],
)
def test_what_would_be_dropped_is_refused(schema: dict[str, Any], keyword: str) -> None:
    with pytest.raises(ValueError, match=r"^json_schema: ") as error:
        checked_schema(json.dumps(schema))
    assert keyword in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "", '{"a": }', '{"a":' * 5000 + "1" + "}" * 5000])
def test_what_cannot_be_read_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^json_schema: ") as error:
        checked_schema(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"not": {"type": "string"}, "if": {"type": "integer", "multipleOf": 3}}, "required": ["not"]},
        {"enum": [{"uniqueItems": True}, "not"]},
        {"$ref": "#/$defs/x", "description": "of one's own", "$defs": {"x": {"type": "array", "uniqueItems": False, "items": {}}}},
        {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}], "default": None, "title": "T"},
        {"properties": {"again": {"$ref": "#"}, "$ref": {"type": "string"}}},
        True,
    ],
)
def test_names_values_and_remarks_are_not_taken_for_rules(schema: Any) -> None:
    checked_schema(json.dumps(schema))
