"""The document names every body and answer once, by what reads or makes it; tests/serve/conformance holds a server to it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.api.embedding import EmbeddingRequest
from serve.api.openapi import _EXCHANGES, Route, document
from serve.protocol import ApiError, read_body

ROUTES = [Route("GET" if each.body is None else "POST", path, "What it does.") for path, each in _EXCHANGES.items()]
DOCUMENT = document([*ROUTES, Route("GET", "/metrics", ""), Route("GET", "/v1/files/{name:path}", "")], "Sterna", "1")


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    found: Any = DOCUMENT
    for key in part["$ref"].removeprefix("#/").split("/"):
        found = found[key]
    return found


def test_every_reference_leads_somewhere() -> None:
    def visit(part: Any) -> int:
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                assert resolved(part)
                return 1
            return sum(map(visit, part.values()))
        return sum(map(visit, part)) if isinstance(part, list) else 0

    assert visit(DOCUMENT) > 30


def test_paths_bodies_and_answers() -> None:
    operation = DOCUMENT["paths"]["/v1/chat/completions"]["post"]
    body = resolved(operation["requestBody"]["content"]["application/json"]["schema"])
    assert {"messages", "tools", "tool_choice"} <= set(body["properties"])
    assert body["additionalProperties"] is False
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert DOCUMENT["paths"]["/v1/files/{name}"]["get"]["parameters"][0]["name"] == "name"
    names = [op["operationId"] for path in DOCUMENT["paths"].values() for op in path.values()]
    assert len(set(names)) == len(names)


def test_keys_are_named_where_they_are_asked_for() -> None:
    assert "security" not in DOCUMENT
    keyed = document(ROUTES, "Sterna", "1", open_to_all=["/health"])
    assert keyed["security"] == [{"key": []}]
    assert keyed["paths"]["/health"]["get"]["security"] == []
    assert "security" not in keyed["paths"]["/tokenize"]["post"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3000) | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


@given(st.dictionaries(st.sampled_from(["model", "input", "encoding_format", "dimensions", "user", "wings"]), VALUES))
def test_a_body_is_read_if_and_only_if_its_schema_says_so(fields: dict[str, Any]) -> None:
    fields = {**fields, "model": "tern"}
    schema = DOCUMENT["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    good = jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]}).is_valid(fields)
    if good:
        assert read_body(json.dumps(fields).encode(), EmbeddingRequest, models=["tern"]).inputs
    else:
        with pytest.raises(ApiError):
            read_body(json.dumps(fields).encode(), EmbeddingRequest, models=["tern"])
