"""The OpenAPI document is true: schemathesis makes requests of it, good and bad ones, and holds every answer to it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings

from tests.serve.conformance.conftest import Served

schemathesis = pytest.importorskip("schemathesis")  # of the test extra
api = schemathesis.pytest.from_fixture("described")
HASTE = settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None, database=None)


@pytest.fixture(scope="package")
def described(served: Served) -> Any:
    schema = schemathesis.openapi.from_dict(served.document)
    schema.config.update(base_url=served.root)
    return schema


def made_answerable(case: Any) -> None:
    """Ask for the model that there is, and for few tokens where nothing is said: that leaves a bad body bad, and a good one good."""
    if not isinstance(case.body, dict):
        return
    if isinstance(case.body.get("model"), str):
        case.body["model"] = "tern"
    if "messages" in case.body and case.operation.path.startswith("/v1"):
        case.body.setdefault("max_completion_tokens", 3)


@api.parametrize()
@HASTE
def test_every_answer_is_as_described(case: Any) -> None:
    made_answerable(case)
    case.call_and_validate(excluded_checks=excluded(), timeout=60)


def excluded() -> list[Any]:
    """What a schema cannot say: a model's name, and what fits into its context."""
    return [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]


def test_every_route_is_in_it(served: Served) -> None:
    paths = {path for path, operations in served.document["paths"].items() for _ in operations}
    assert paths >= {
        "/health", "/metrics", "/v1/models", "/v1/models/{name}", "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize",
        "/detokenize", "/openapi.json",
    }  # fmt: skip


def test_it_is_openapi(served: Served) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(served.document)
    assert httpx.get(f"{served.root}/openapi.json").headers["content-type"] == "application/json"
    for schema in served.document["components"]["schemas"].values():
        assert schema["type"] == "object"


def test_bodies_it_calls_good_are_read(served: Served) -> None:
    for path, body in (("/v1/completions", {"model": "tern", "prompt": "a"}), ("/tokenize", {"prompt": "a"})):
        assert httpx.post(served.root + path, json=body, timeout=30).status_code == 200
