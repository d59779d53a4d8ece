"""A small real server that speaks the clouds' metadata protocols."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest


class MetadataService(http.server.ThreadingHTTPServer):
    """A metadata service: AWS's with session tokens, and Google's, whose answers the test sets in `paths`."""

    ACTION = "/latest/meta-data/spot/instance-action"
    REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
    PREEMPTED = "/computeMetadata/v1/instance/preempted"

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.paths: dict[str, str] = {}
        self.tokens: set[str] = set()
        self.fail = False
        self.aws = self.gcp = True
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: MetadataService

    def do_PUT(self) -> None:
        if not self.server.aws or self.path != "/latest/api/token" or not self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
            return self._answer(404)
        token = f"token-{len(self.server.asked)}"
        self.server.asked.append("PUT")
        self.server.tokens.add(token)
        return self._answer(200, token)

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.fail:
            return self._answer(503)
        if self.path.startswith("/latest/"):
            if self.headers.get("X-aws-ec2-metadata-token") not in self.server.tokens:
                return self._answer(401)
        elif not self.server.gcp or self.headers.get("Metadata-Flavor") != "Google":
            return self._answer(403)
        body = self.server.paths.get(self.path)
        return self._answer(404) if body is None else self._answer(200, body)

    def _answer(self, status: int, body: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[MetadataService]:
    with MetadataService() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
