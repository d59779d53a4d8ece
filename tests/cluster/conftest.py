"""A small real server that speaks the clouds' metadata protocols."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest


class MetadataService(http.server.ThreadingHTTPServer):
    """A metadata service: AWS's with session tokens, Google's, and Azure's, whose answers the test sets in `paths` and `events`."""

    TOKEN = "/latest/api/token"
    ACTION = "/latest/meta-data/spot/instance-action"
    REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
    PREEMPTED = "/computeMetadata/v1/instance/preempted"
    EVENTS = "/metadata/scheduledevents"
    NAME = "/metadata/instance/compute/name"

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.paths: dict[str, str] = {}
        self.tokens: dict[str, float] = {}
        self.ahead_s = 0.0
        """How far the service's clock is set forward: session tokens expire by it."""
        self.fail = False
        self.aws = self.gcp = self.azure = True
        self.silent: set[str] = set()
        """Paths that are heard and never answered, as when the answer dies of its hop limit."""
        self.events: list[dict[str, Any]] = []
        self.incarnation = 1
        self.machine = "fleet_3"
        self.started: list[str] = []
        """Ids of the Azure events that were acknowledged."""
        self.asked: list[str] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def now(self) -> float:
        return time.monotonic() + self.ahead_s

    def schedule(self, kind: str, in_s: float, *, resources: tuple[str, ...] = ("fleet_3",), status: str = "Scheduled") -> str:
        """Add an Azure event; its id."""
        name = f"{len(self.events):08X}-8A1C-4A8C-9DC3-000000000000"
        moment = formatdate(time.time() + in_s, usegmt=True) if status == "Scheduled" else ""
        self.events.append(
            {"EventId": name, "EventStatus": status, "EventType": kind, "ResourceType": "VirtualMachine",
             "Resources": list(resources), "NotBefore": moment, "Description": "", "EventSource": "Platform", "DurationInSeconds": -1}
        )  # fmt: skip
        self.incarnation += 1
        return name


class _Handler(http.server.BaseHTTPRequestHandler):
    server: MetadataService

    def do_PUT(self) -> None:
        ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if not self.server.aws or self.path != self.server.TOKEN:
            return self._answer(404)
        if not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
            return self._answer(400)
        if self.headers.get("X-Forwarded-For"):
            return self._answer(403)
        token = f"token-{len(self.server.asked)}"
        self.server.asked.append("PUT")
        self.server.tokens[token] = self.server.now() + int(ttl)
        return self._answer(200, token)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        if self.server.fail:
            return self._answer(503)
        if path.startswith("/metadata/"):
            return self._azure(path)
        if path.startswith("/latest/"):
            if self.server.tokens.get(self.headers.get("X-aws-ec2-metadata-token", ""), 0.0) < self.server.now():
                return self._answer(401)
        elif not self.server.gcp or self.headers.get("Metadata-Flavor") != "Google":
            return self._answer(403)
        body = self.server.paths.get(path)
        return self._answer(404) if body is None else self._answer(200, body)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if urlsplit(self.path).path != self.server.EVENTS or not self._asked_rightly():
            return self._answer(400)
        names = [request["EventId"] for request in body["StartRequests"]]
        if unknown := set(names) - {event["EventId"] for event in self.server.events}:
            return self._answer(400, f"unknown event {unknown}")
        self.server.started += names
        return self._answer(200)

    def _azure(self, path: str) -> None:
        if not self.server.azure:
            return self._answer(404)
        if not self._asked_rightly():
            return self._answer(400, '{"error": "Bad request. api-version was not specified in the request"}')
        if path == self.server.NAME:
            return self._answer(200, self.server.machine)
        document = {"DocumentIncarnation": self.server.incarnation, "Events": self.server.events}
        return self._answer(200, json.dumps(document)) if path == self.server.EVENTS else self._answer(404)

    def _asked_rightly(self) -> bool:
        return self.headers.get("Metadata") == "true" and "api-version" in parse_qs(urlsplit(self.path).query)

    def _answer(self, status: int, body: str = "") -> None:
        if urlsplit(self.path).path in self.server.silent:
            self.server.over.wait(30)
            return
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
        server.over.set()
        server.shutdown()
