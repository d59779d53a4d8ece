"""Answers have the shapes that the document names, and no field besides."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from serve.api import shapes
from serve.api.answers import Answer
from serve.api.openapi import Route, document
from serve.engine.request import Request, Sampling, TokenLogprob
from serve.migrate import Done, Fresh, Record, Tokens
from tests.serve.bodies import chat, completion

SCHEMAS = document([Route("GET", "/health", "")], "Sterna", "1")["components"]["schemas"]


def closed(name: str) -> Any:
    schemas = json.loads(json.dumps(SCHEMAS))
    for schema in schemas.values():
        schema["additionalProperties"] = False
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}})


@pytest.mark.parametrize("kind", ["Completion", "ChatCompletion"])
@pytest.mark.parametrize("fields", [{}, {"logprobs": 2}, {"return_token_ids": True}])
def test_answers_and_their_chunks(kind: str, fields: dict[str, Any]) -> None:
    if kind == "ChatCompletion" and "logprobs" in fields:
        fields = {"logprobs": True, "top_logprobs": 1}
    make = chat if kind == "ChatCompletion" else completion
    body = make(**fields, stream=True, stream_options={"include_usage": True})
    record = Record(Request(id="r", prompt=(1, 2), sampling=Sampling()))
    answer = Answer(body, "id", 1, lambda token: b"<%d>" % token, [record])
    attempt, _ = record.resume()
    logprobs = (TokenLogprob(5, -0.5, ((5, -0.5),)),) if fields.get("logprobs") else None
    fresh = record.take(attempt, Tokens(0, (5,), 0, "ab", logprobs))
    assert isinstance(fresh, Fresh)
    chunks = [*answer.opening(), answer.add(0, fresh)]
    record.take(attempt, Done(Tokens(1, (), 2, ""), "stop"))
    chunks += [*answer.closing(0), answer.usage_chunk()]
    for chunk in chunks:
        closed(f"{kind}Chunk").validate(chunk)
    closed(kind).validate(answer.whole())


def test_all_shapes_are_in_the_document() -> None:
    assert set(shapes.__all__) <= set(SCHEMAS)
