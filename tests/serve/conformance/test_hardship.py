"""Clients that are slow, rude or broken: the server neither falls nor forgets; afterwards nobody is inside and no block is held."""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serve.conformance.conftest import MOST_BYTES, Served

LONG = {"model": "tern", "prompt": "def", "max_tokens": 400, "ignore_eos": True, "temperature": 0}


@pytest.fixture(autouse=True)
def leaves_nothing(served: Served) -> Iterator[None]:
    yield
    served.assert_idle()
    answer = httpx.post(f"{served.url}/completions", json={"model": "tern", "prompt": "def", "max_tokens": 2}, timeout=30)
    assert answer.status_code == 200, "the server goes on"


def connected(served: Served) -> socket.socket:
    host, port = served.root.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def request(body: bytes, path: str = "/v1/completions", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n\r\n".encode() + body


def read_all(connection: socket.socket, until: bytes) -> bytes:
    received = b""
    while until not in received and (more := connection.recv(65536)):
        received += more
    return received


def test_a_slow_reader_gets_everything(served: Served) -> None:
    want = httpx.post(f"{served.url}/completions", json={**LONG, "max_tokens": 60}, timeout=60).json()["choices"][0]["text"]
    with connected(served) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(request(json.dumps({**LONG, "max_tokens": 60, "stream": True}).encode()))
        received = b""
        while b"[DONE]" not in received:
            received += connection.recv(97)
            time.sleep(0.005)  # this is the slow reader
    body = re.sub(rb"(^|\r\n)[0-9a-f]+\r\n", b"", received.partition(b"\r\n\r\n")[2])  # the sizes of chunks
    events = [json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == want


def test_a_slow_writer_is_understood(served: Served) -> None:
    message = request(json.dumps({**LONG, "max_tokens": 3}).encode())
    with connected(served) as connection:
        for at in range(0, len(message), 16):
            connection.sendall(message[at : at + 16])
            time.sleep(0.01)  # this is the slow writer
        assert b"200 OK" in read_all(connection, b"usage")


def test_a_half_closed_connection_leaks_nothing(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(request(json.dumps({**LONG, "stream": True}).encode()))
        connection.shutdown(socket.SHUT_WR)
        read_all(connection, b"[DONE]")


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_frees_the_place(served: Served, stream: bool) -> None:
    body = json.dumps({**LONG, "stream": stream, "n": 8, "temperature": 1.0}).encode()
    for wait_s in (0.0, 0.02, 0.2):
        with connected(served) as connection:
            connection.sendall(request(body))
            time.sleep(wait_s)  # at different moments of the request's life


def test_a_body_that_never_comes(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(request(b'{"model": "tern", "pro', length=1000))
    with connected(served) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-le")
    with connected(served) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # TLS
        connection.recv(1000)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize"])
def test_ten_megabytes_are_refused_and_delay_nobody(served: Served, path: str) -> None:
    waits: list[float] = []
    done = threading.Event()

    def bystander() -> None:
        while not done.is_set():
            began = time.monotonic()
            assert httpx.get(f"{served.root}/health", timeout=30).status_code == 200
            waits.append(time.monotonic() - began)

    watch = threading.Thread(target=bystander)
    watch.start()
    try:
        response = httpx.post(served.root + path, content=b'{"model": "tern", "input": "' + b"x" * 10_000_000 + b'"}', timeout=60)
        just_fits = b'{"model": "tern", "prompt": 5' + b" " * (MOST_BYTES - 100) + b"}"
        other = httpx.post(served.root + path, content=just_fits, timeout=60)
    finally:
        done.set()
        watch.join()
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert other.status_code == 400
    assert max(waits) < 2.0


def test_an_answer_of_megabytes_arrives(served: Served) -> None:
    answer = httpx.post(f"{served.root}/tokenize", json={"prompt": "x y " * 320_000}, timeout=60)
    assert answer.status_code == 200
    assert len(answer.content) > 4 << 20, "more than gRPC takes by default"
    assert answer.json()["count"] == len(answer.json()["tokens"])


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe\x00",
        b'{"model": "tern", "prompt": "\xc3\x28", "input": "\xed\xa0\x80"}',
        b'{"model": "tern", "prompt": "\\ud800", "input": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"model": "tern", "prompt": ' + b"9" * 5_000 + b"}",
        b'{"model": "tern", "prompt": "a", "max_tokens": 1e400}',
        b'{"model": "tern", "prompt": "a", "temperature": NaN}',
        b'{"model": "tern", "prompt": "a", "wings": 2}',
        b'{"model": null}',
        b'"text"',
        b"model=tern&prompt=a",
        b'{"model": "tern", "tokens": [99999999999999999999999], "prompt": [99999999999999999999999], "input": [1e3]}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_nonsense_is_an_openai_error(served: Served, path: str, body: bytes) -> None:
    response = httpx.post(served.root + path, content=body, timeout=30)
    assert response.status_code in (400, 404), response.text
    served.check(response.json(), "ErrorBody")
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models/tern", 405),
        ("PUT", "/tokenize", 405),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/responses", 404),
        ("GET", "/%00/..%2f", 404),
        ("GET", "/v1/models/%F0%9F%90%A6", 404),
    ],
)
def test_other_paths_and_methods_are_openai_errors(served: Served, method: str, path: str, status: int) -> None:
    response = httpx.request(method, served.root + path)
    assert response.status_code == status
    served.check(response.json(), "ErrorBody")


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/tern", "/"])
def test_head_is_get_without_the_body(served: Served, path: str) -> None:
    head, get = httpx.head(served.root + path), httpx.get(served.root + path)
    assert (head.status_code, head.content, head.headers["content-type"]) == (200, b"", get.headers["content-type"])


def test_a_compressed_body_is_an_openai_error(served: Served) -> None:
    response = httpx.post(f"{served.url}/completions", content=gzip.compress(b"{}"), headers={"content-encoding": "gzip"})
    assert response.status_code == 415
    served.check(response.json(), "ErrorBody")


def test_embeddings_stop_with_their_asker_and_live_streams_go_on(served: Served) -> None:
    many: dict[str, Any] = {"model": "tern", "input": [[5] * 512] * 256}
    gaps: list[float] = []
    with httpx.stream("POST", f"{served.url}/completions", json={**LONG, "stream": True}, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        with connected(served) as connection:
            connection.sendall(request(json.dumps(many).encode(), "/v1/embeddings"))
            before = time.monotonic()
            for line in lines:
                if line.startswith("data: {"):
                    gaps.append(time.monotonic() - before)
                    before, last = time.monotonic(), json.loads(line[6:])
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):  # the stream's end did not wait for theirs
                connection.recv(1)
    assert last["choices"][0]["finish_reason"] == "length"
    assert max(gaps) < 2.0
