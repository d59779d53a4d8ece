"""The OpenAPI document: made of the very types that read the requests, and of those that the answers are held to.

Promise: every route is in it; what it calls a valid body is read (or refused for what a schema cannot say, such as a prompt that is too
long), and every answer has the shape it names, errors too. Price: built once, when first asked for. Source: OpenAPI 3.1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter

from serve.api import shapes
from serve.api.chat import ChatRequest
from serve.api.completion import CompletionRequest
from serve.api.embedding import EmbeddingRequest
from serve.api.tokenization import DetokenizeRequest, TokenizeRequest

__all__ = ["Route", "document"]


@dataclass(frozen=True, slots=True)
class Route:
    """A path of the server, as the web framework knows it."""

    method: str
    path: str
    summary: str


@dataclass(frozen=True, slots=True)
class _Exchange:
    answer: Any
    body: type[BaseModel] | None = None
    event: Any = None


_EXCHANGES = {
    "/health": _Exchange(shapes.Health),
    "/v1/models": _Exchange(shapes.Models),
    "/v1/models/{name}": _Exchange(shapes.Model),
    "/v1/completions": _Exchange(shapes.Completion, CompletionRequest, shapes.CompletionChunk),
    "/v1/chat/completions": _Exchange(shapes.ChatCompletion, ChatRequest, shapes.ChatCompletionChunk),
    "/v1/embeddings": _Exchange(shapes.Embeddings, EmbeddingRequest),
    "/tokenize": _Exchange(shapes.Tokenized, TokenizeRequest),
    "/detokenize": _Exchange(shapes.Detokenized, DetokenizeRequest),
}


def document(routes: Iterable[Route], title: str, version: str, *, open_to_all: Collection[str] | None = None) -> dict[str, Any]:
    """OpenAPI 3.1, as plain data. `open_to_all`: where keys are asked for, the paths that need none; None where no path needs one."""
    bodies = [(each.body, "validation") for each in _EXCHANGES.values()]
    answers = [(kind, "serialization") for each in _EXCHANGES.values() for kind in (each.answer, each.event)]
    kinds = [(kind, mode) for kind, mode in (*bodies, *answers, (shapes.ErrorBody, "serialization")) if kind is not None]
    schemas: Any = [(kind, mode, TypeAdapter(kind)) for kind, mode in kinds]
    found, definitions = TypeAdapter.json_schemas(schemas, ref_template="#/components/schemas/{model}")
    refs = {kind: found[kind, mode] for kind, mode in kinds}  # type: ignore[index]
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(_plain(route.path), {})[route.method.lower()] = _operation(route, _EXCHANGES.get(_plain(route.path)), refs)
    keyed: dict[str, Any] = {}
    if open_to_all is not None:
        keyed["security"] = [{"key": []}]
        for path in open_to_all:
            for operation in paths.get(path, {}).values():
                operation["security"] = []
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        **keyed,
    }


def _plain(path: str) -> str:
    """A path without the framework's converters: {name:path} is {name}."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def _event(name: str) -> dict[str, Any]:
    """Each event of a stream (OpenAPI 3.1 lets `schema` describe it): JSON in its data, `[DONE]` in the last."""
    return {"type": "object", "required": ["data"], "properties": {"data": {"type": "string", "description": f"{name} as JSON, or [DONE]"}}}


def _operation(route: Route, exchange: _Exchange | None, refs: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": route.summary, "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_")}
    if names := re.findall(r"\{(\w+)", route.path):
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    content: Mapping[str, Any] = {"*/*": {}}
    if exchange is not None:
        content = {"application/json": {"schema": refs[exchange.answer]}}
        if exchange.event is not None:
            content = {**content, "text/event-stream": {"schema": _event(exchange.event.__name__)}}
        if exchange.body is not None:
            found["requestBody"] = {"required": True, "content": {"application/json": {"schema": refs[exchange.body]}}}
    error = {"description": "What went wrong.", "content": {"application/json": {"schema": refs[shapes.ErrorBody]}}}
    found["responses"] = {"200": {"description": "The answer.", "content": content}, "4XX": error, "5XX": error}
    return found
