"""JSON schemas: what of them a grammar can hold a text to.

Promise: a schema either says nothing that the grammar would drop in silence, or is refused with the keyword that stands in the way.
Price: one walk over the schema. The list was found by trying what xgrammar 0.2 accepts; `format` is held to where it is one that is
known (date, uri, …) and is a remark otherwise, as the JSON Schema standard has it; of `oneOf`, one branch or more will match.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

__all__ = ["checked_schema"]

_DROPPED = ("not", "uniqueItems", "contains", "dependentRequired", "dependentSchemas", "dependencies", "if")
_REMARKS = ("title", "description", "default", "examples", "deprecated", "$schema", "$id", "$comment", "$anchor", "$defs", "definitions")
_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions")
_OF_DATA = ("enum", "const", "default", "examples", "required")


def checked_schema(text: str) -> None:
    """Whether a JSON schema can be enforced; ValueError with the reason if not.

    >>> checked_schema('{"type": "array", "uniqueItems": true}')
    Traceback (most recent call last):
    ...
    ValueError: json_schema: 'uniqueItems' is not supported; leave it out
    """
    try:
        for schema in _schemas(json.loads(text)):
            reason = _reason(schema)
            if reason is not None:
                raise ValueError(f"json_schema: {reason} is not supported; leave it out")
    except json.JSONDecodeError as error:
        raise ValueError(f"json_schema: is not JSON ({error}); give the schema as a JSON object") from None
    except RecursionError:
        raise ValueError("json_schema: is nested too deeply; flatten it with $defs and $ref") from None


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and all those in it."""
    if isinstance(schema, list):
        for part in schema:
            yield from _schemas(part)
    elif isinstance(schema, dict):
        yield schema
        for key, value in schema.items():
            if key in _OF_NAMES and isinstance(value, dict):
                yield from _schemas(list(value.values()))
            elif key not in _OF_DATA:
                yield from _schemas(value)


def _reason(schema: dict[str, Any]) -> str | None:
    """What in a schema, those within it aside, would be dropped."""
    dropped = next((key for key in _DROPPED if schema.get(key) not in (None, False)), None)
    if dropped is not None:
        return repr(dropped)
    if len(schema.get("allOf") or ()) > 1:
        return "'allOf' of more than one schema"
    for key in ("$ref", "anyOf", "oneOf", "allOf"):
        beside = next((other for other in schema if other not in _REMARKS and other != key), None)
        if key in schema and beside is not None:
            return f"{beside!r} beside {key!r}"
    elsewhere = schema.get("$ref", "#")
    if not isinstance(elsewhere, str) or not (elsewhere == "#" or elsewhere.startswith("#/")):
        return f"'$ref' to {elsewhere!r}, which is no path within the schema,"
    required, properties = schema.get("required"), schema.get("properties")
    if isinstance(required, list) and (unknown := [name for name in required if name not in (properties or ())]):
        return f"'required' of {unknown[0]!r}, which 'properties' do not name,"
    if "pattern" in schema and ("minLength" in schema or "maxLength" in schema):
        return "'pattern' with a length"
    return None
