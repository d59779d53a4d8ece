"""The guard around an application of a few lines; tests/serve/test_limits.py has it around the real one."""

import asyncio
from contextlib import suppress
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from serve.limits.admission import Admission, Limits
from serve.limits.guard import Guard, visit_of
from serve.limits.keys import ApiKey, digest
from serve.telemetry.metrics import GatewayMetrics

SECRET = "sk-this-is-a-secret"
ME = {"authorization": f"Bearer {SECRET}"}


class House:
    """An application behind a guard, and what it saw."""

    def __init__(self, *keys: ApiKey) -> None:
        self.metrics = GatewayMetrics()
        self.admission = Admission(keys, Limits(max_queue=9), slots=lambda: 4, clock=lambda: 0.0, observer=self.metrics)
        self.bodies: list[bytes] = []
        self.inside: list[int] = []
        inner = Starlette(routes=[Route(path, self.answer, methods=["GET", "POST"]) for path in ("/health", "/v1/{what}", "/")])
        self.app = Guard(inner, lambda: (self.admission, self.metrics))

    async def answer(self, request: Request) -> Response:
        if request.url.path == "/health":
            return PlainTextResponse("ok")
        self.bodies.append(await request.body())
        if request.url.path == "/v1/fail":
            raise RuntimeError("a fault of ours")
        if visit_of(request).allowance is not None:
            self.inside.append(visit_of(request).allowance.num_streams)

        async def parts() -> Any:
            yield b"a"
            self.inside.append(self.admission._allowances["me"].num_streams if self.admission._allowances else 0)
            yield b"b"

        return StreamingResponse(parts())

    def ask(self, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
        async def one() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.request(method, path, headers=headers, content=b"body")

        return asyncio.run(one())


@pytest.mark.parametrize("path", ["/v1/x", "/", "/nothing", "/metrics", "//health", "/health/", "/Health"])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer sk-wrong-wrong-wrong"}, {"authorization": SECRET}])
def test_without_a_known_key_nothing_is_looked_at(path: str, headers: dict[str, str]) -> None:
    house = House(ApiKey("me", digest(SECRET)))
    response = house.ask("POST", path, headers)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"].startswith("Basic")
    assert not house.bodies
    assert SECRET not in response.text


def test_health_is_open_and_without_keys_everything_is() -> None:
    assert House(ApiKey("me", digest(SECRET))).ask("GET", "/health", {}).status_code == 200
    assert House().ask("POST", "/v1/x", {}).text == "ab"


def test_another_sites_page_cannot_have_a_browser_ask() -> None:
    house = House()
    refused = house.ask("POST", "/v1/x", {"sec-fetch-site": "cross-site", "content-type": "text/plain"})
    assert (refused.status_code, refused.json()["error"]["code"], house.bodies) == (403, "cross_site", [])
    for site in ("same-origin", "none"):
        assert house.ask("POST", "/v1/x", {"sec-fetch-site": site}).status_code == 200


def test_a_visit_lasts_until_the_last_byte_and_ends_when_the_route_fails() -> None:
    house = House(ApiKey("me", digest(SECRET), max_streams=1))
    for _ in range(3):
        assert house.ask("POST", "/v1/x", ME).text == "ab"
        assert house.ask("POST", "/v1/fail", ME).status_code == 500
    assert house.inside == [1] * 6
    assert house.admission._allowances["me"].num_streams == 0


def test_a_refusal_says_when_to_come_again_and_reading_a_page_costs_no_request() -> None:
    house = House(ApiKey("me", digest(SECRET), requests_per_minute=1))
    assert [house.ask("GET", "/v1/x", ME).status_code for _ in range(3)] == [200] * 3
    assert [house.ask("POST", "/v1/x", ME).status_code for _ in range(2)] == [200, 429]
    refused = house.ask("POST", "/v1/x", ME)
    assert refused.headers["retry-after"] == "60"
    assert (refused.json()["error"]["type"], refused.json()["error"]["code"]) == ("requests", "rate_limit_exceeded")


def test_every_answer_to_a_limited_key_says_what_is_left() -> None:
    house = House(ApiKey("me", digest(SECRET), requests_per_minute=2))
    answers = [house.ask("POST", path, ME) for path in ("/v1/x", "/nothing", "/v1/x")]
    assert [answer.status_code for answer in answers] == [200, 404, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert [answer.headers.get_list("x-ratelimit-limit-requests") for answer in answers] == [["2"]] * 3
    assert not any(name.startswith("x-ratelimit") for name in House().ask("POST", "/v1/x", {}).headers)
    assert not any(name.startswith("x-ratelimit") for name in house.ask("POST", "/v1/x", {}).headers)


def test_a_client_that_leaves_is_counted_as_gone_and_ends_its_visit() -> None:
    house = House(ApiKey("me", digest(SECRET), max_streams=1))
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/x",
        "query_string": b"",
        "headers": [(b"authorization", ME["authorization"].encode())],
    }
    received = iter([{"type": "http.request", "body": b""}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(received)

    async def send(message: Any) -> None:
        sent.append(message)
        await asyncio.sleep(0)  # so that the news of the disconnect gets through between two parts

    async def leave() -> None:
        with suppress(ClientDisconnect):
            await house.app(scope, receive, send)

    asyncio.run(leave())
    assert house.admission._allowances["me"].num_streams == 0
    assert house.metrics.registry.get_sample_value("sterna_clients_gone_total") == 1
    assert house.ask("POST", "/v1/x", ME).text == "ab"
    assert house.metrics.registry.get_sample_value("sterna_requests_total", {"path": "/v1/{what}", "status": "200"}) == 1
