"""The OpenAPI document is true: schemathesis makes requests of it, good and bad ones, and holds every answer to it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

import serve.gateway  # its import adds the routes
from serve.api.web import api, documented
from tests.serve.conformance.conftest import Served

schemathesis = pytest.importorskip("schemathesis")  # of the test extra
OPERATIONS = [(method, path) for path, methods in documented(api, None)["paths"].items() for method in methods]
assert serve.gateway


def tried(served: Served, method: str, path: str, most: int, mode: Any) -> None:
    """Hold the server to the document with `most` requests."""
    schema = schemathesis.openapi.from_dict(served.document)
    schema.config.update(base_url=served.root)
    operation = schema[path][method.upper()]
    # What a schema cannot say: a model's name, what fits into its context, and which fields go with which.
    unsaid = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]

    @settings(max_examples=most, suppress_health_check=list(HealthCheck), deadline=None, database=None)
    @given(operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        made_answerable(case)
        case.call_and_validate(excluded_checks=unsaid, timeout=60)

    one()


def made_answerable(case: Any) -> None:
    """Ask for the model that there is, and for few tokens where nothing is said: that leaves a bad body bad, and a good one good."""
    if not isinstance(case.body, dict):
        return
    if isinstance(case.body.get("model"), str):
        case.body["model"] = "tern"
    if "messages" in case.body and case.operation.path.startswith("/v1"):
        case.body.setdefault("max_completion_tokens", 3)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_as_described(served: Served, method: str, path: str) -> None:
    tried(served, method, path, 12, schemathesis.GenerationMode.POSITIVE)
    if method == "post":
        tried(served, method, path, 8, schemathesis.GenerationMode.NEGATIVE)
    served.assert_idle()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_as_described_however_many(served: Served, method: str, path: str) -> None:
    tried(served, method, path, 200, schemathesis.GenerationMode.POSITIVE)
    if method == "post":
        tried(served, method, path, 200, schemathesis.GenerationMode.NEGATIVE)
    served.assert_idle()


def test_every_route_is_in_it(served: Served) -> None:
    assert set(served.document["paths"]) >= {
        "/health", "/metrics", "/v1/models", "/v1/models/{name}", "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize",
        "/detokenize", "/openapi.json",
    }  # fmt: skip
    assert served.document == documented(api, None), "the server's own routes are those of its class"


def test_it_is_openapi(served: Served) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(served.document)
    assert httpx.get(f"{served.root}/openapi.json").headers["content-type"] == "application/json"
    for schema in served.document["components"]["schemas"].values():
        assert schema["type"] == "object"
