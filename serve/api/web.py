"""The HTTP application around the routes: whatever goes wrong is an OpenAI error body, and a body is read up to its limit only.

Promise: no traceback and no page of HTML reaches a client, whatever it asks for and however. Price: none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from serve.api.openapi import Route, document
from serve.protocol import ApiError

__all__ = ["api", "documented", "raw_body"]

BODY_S = 60.0
"""A body may take so long: 4 MB at half a megabit a second."""
_log = logging.getLogger(__name__)
api = FastAPI(title="Sterna", version=version("sterna"), docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)


@api.exception_handler(ApiError)
async def _on_api_error(_: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


@api.exception_handler(HTTPException)
async def _on_http_error(request: Request, error: HTTPException) -> JSONResponse:
    what = {
        404: (f"there is no {request.url.path} here", "unknown_url"),
        405: (f"{request.method} is not allowed for {request.url.path}", "method_not_supported"),
    }
    message, code = what.get(error.status_code, (str(error.detail), None))
    refusal = ApiError(error.status_code, message, code=code)
    return JSONResponse(refusal.body(), status_code=refusal.status, headers=error.headers)


@api.exception_handler(ClientDisconnect)
async def _on_disconnect(*_: Any) -> Response:
    return Response(status_code=499)  # nobody reads it; the figures count it as nginx does


@api.exception_handler(Exception)
async def _on_failure(_: Request, error: Exception) -> JSONResponse:
    _log.error("a request failed", exc_info=error)
    return JSONResponse(ApiError(500, "the server failed; its log has the reason").body(), status_code=500)


def documented(app: FastAPI, open_to_all: Collection[str] | None) -> dict[str, Any]:
    """The OpenAPI document of an application's routes; see `serve.api.openapi.document`."""
    paths = app.openapi()["paths"]  # which knows the routes, and no bodies
    routes = [
        Route(method, path, operation.get("description", "").partition("\n")[0])
        for path, operations in paths.items()
        for method, operation in operations.items()
    ]
    return document(routes, app.title, app.version, open_to_all=open_to_all)


async def raw_body(request: Request, max_bytes: int) -> bytes:
    """The body, given up as soon as it is larger than the limit: one client's megabytes are not to be everyone's wait.

    ApiError 413 then, 408 for one that does not come (who opens a request and sends nothing must not keep its place), and 415 for a
    compressed one, whose size would say nothing of what becomes of it.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise ApiError(415, f"content-encoding: {coding[:20]} is not read here; send the body as it is")
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > max_bytes:
                    raise ApiError(413, f"the request is larger than {max_bytes:,} bytes; send less", code="request_too_large")
    except TimeoutError:
        raise ApiError(408, f"the body had not come within {BODY_S:g} s", code="request_timeout") from None
    return bytes(raw)
