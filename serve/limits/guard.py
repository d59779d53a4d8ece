"""In front of every route: no request is looked at before its key is known, and none is forgotten before its last byte.

Promise: whatever the path, without a known key there is only /health (where keys are asked for); what is not let in is answered without
its body being read, as is what a browser sends in the name of another site's page, which reaches addresses that are this machine's only.
A visit ends when its response does, however that ends, and is counted; every answer's headers say what is left of its key's limits.
Price: one ASGI layer. Source: OpenAI's `x-ratelimit-…` headers; Fetch Metadata (W3C).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.limits.admission import Admission, Visit
from serve.protocol import ApiError
from serve.telemetry.metrics import GatewayMetrics

__all__ = ["Guard", "visit_of"]

OPEN = ("/health",)
"""Paths that need no key: what a load balancer asks."""


class Guard:
    """The ASGI layer."""

    def __init__(self, app: ASGIApp, door: Callable[[], tuple[Admission, GatewayMetrics]]) -> None:
        """`door` gives this process's gateway's own, once there is one."""
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's request."""
        if scope.get("method") == "HEAD":  # the answer to GET, whose body the HTTP server leaves out
            scope = {**scope, "method": "GET"}
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        admission, metrics = self._door()
        visit: Visit | None = None
        status, whole = None, False

        async def note(message: Message) -> None:
            nonlocal status, whole
            status = message.get("status", status)
            whole = message["type"] == "http.response.body" and not message.get("more_body")
            if visit is not None and message["type"] == "http.response.start" and (limits := visit.headers()):
                said = [(name.encode(), value.encode()) for name, value in limits.items()]
                message = {**message, "headers": [*message.get("headers", ()), *said]}
            await send(message)

        headers, counts = Request(scope).headers, scope["method"] == "POST"
        try:
            if counts and headers.get("sec-fetch-site") == "cross-site":  # a page that somebody on this machine looks at
                raise ApiError(403, "a page of another site may not ask here", code="cross_site")
            visit = admission.enter(headers.get("authorization"), counts=counts)
        except ApiError as refusal:
            response = JSONResponse(refusal.body(), refusal.status, refusal.headers)
            await response(scope, receive, note)
        else:
            scope.setdefault("state", {})["visit"] = visit
            try:
                await self._app(scope, receive, note)
            finally:
                visit.leave()
        finally:
            metrics.answered(_route(scope), status if whole else None)


def visit_of(request: Request) -> Visit:
    """The visit that this request is."""
    visit: Visit = request.state.visit
    return visit


def _route(scope: Scope) -> str:
    """The route's own path, of which there are few, rather than whatever a client wrote."""
    route: Any = scope.get("route")
    return str(getattr(route, "path", "other"))
