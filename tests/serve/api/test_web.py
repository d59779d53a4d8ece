"""Whatever goes wrong around the routes is an OpenAI error body."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request

from serve.api.web import api, raw_body
from serve.protocol import ApiError


def asked(method: str, path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        bare = FastAPI(exception_handlers=dict(api.exception_handlers))  # without the guard that a gateway puts in front of the routes
        transport = httpx.ASGITransport(bare, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path)

    return asyncio.run(ask())


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("POST", "/nothing", 404)])
def test_what_is_not_there(method: str, path: str, status: int) -> None:
    response = asked(method, path)
    assert response.status_code == status
    assert response.json()["error"]["message"] == f"there is no {path} here"
    assert (response.json()["error"]["type"], response.json()["error"]["code"]) == ("invalid_request_error", "unknown_url")


def test_a_body_is_read_up_to_its_limit() -> None:
    chunks, taken = [b"ab", b"cd", b"ef"], 0

    async def receive() -> dict[str, object]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": chunks[taken - 1], "more_body": taken < len(chunks)}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    assert asyncio.run(raw_body(request, 6)) == b"abcdef"
    taken, request = 0, Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(ApiError) as caught:
        asyncio.run(raw_body(request, 3))
    assert (caught.value.status, caught.value.code) == (413, "request_too_large")
    assert taken == 2, "what comes after the limit is not waited for"


def test_a_compressed_body_is_refused_before_it_is_read() -> None:
    request = Request({"type": "http", "method": "POST", "headers": [(b"content-encoding", b"gzip")]})
    with pytest.raises(ApiError, match="content-encoding: gzip is not read here") as caught:
        asyncio.run(raw_body(request, 6))
    assert caught.value.status == 415


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.api.web.BODY_S", 0.01)
    parts = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive() -> dict[str, object]:
        return next(parts, None) or await asyncio.Future()

    with pytest.raises(ApiError, match=r"had not come within 0\.01 s") as caught:
        asyncio.run(raw_body(Request({"type": "http", "method": "POST", "headers": []}, receive), 6))
    assert (caught.value.status, caught.value.code) == (408, "request_timeout")
