"""Keys, limits and the death of a gateway, over HTTP: an application with two gateways, one replica and a file of keys."""

import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import ray
import ray.serve
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from serve.app import APP, free_port, running
from serve.config import ServeConfig
from serve.engine.config import EngineConfig

KEY, SMALL, READER = "sk-the-key-of-the-team", "sk-the-key-of-a-visitor", "sk-the-key-of-a-reader"
KEYS = f"""
[team]
key = "{KEY}"

[visitor]
key = "{SMALL}"
tokens_per_minute = 200
max_streams = 2

[reader]
key = "{READER}"
tokens_per_minute = 2000
requests_per_minute = 100
"""
PATIENCE_S = 30.0
LONG = {"model": "tern", "prompt": "def add(left", "max_tokens": 8000, "stream": True, "ignore_eos": True, "n": 8}


@pytest.fixture(scope="module")
def url(ray_session: None, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write_text(KEYS)
    patient = shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("patient") / "tern")  # with room for streams that last
    shape = json.loads((patient / "config.json").read_text())
    (patient / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": 8192}))
    engine = EngineConfig(dtype="float32", num_threads=1, draft="off")
    config = ServeConfig(
        model=str(patient), name="tern", port=free_port(), engine=engine, gateways=2, api_keys=str(keys), max_queue=16, max_request_s=40
    )
    with running(config) as base:
        yield base


def client(url: str, key: str) -> OpenAI:
    return OpenAI(base_url=url, api_key=key, max_retries=0)


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    return found


def replica() -> dict[str, Any]:
    return ray.serve.get_deployment_handle("on_demand", APP).broadcast("stats").results(timeout_s=PATIENCE_S)[0]


def is_whole(lines: Iterator[str]) -> bool:
    try:
        return list(lines)[-2:] == ["data: [DONE]", ""]
    except httpx.RemoteProtocolError:  # what every HTTP library makes of a body that ends early
        return False


def is_idle() -> bool:
    stats = replica()
    return not (stats["running"] or stats["waiting"] or stats["held_blocks"])


def opened(held: ExitStack, url: str, **other: Any) -> httpx.Response:
    """The response to a request for long streams, its first bytes there; closed with `held`."""
    client = held.enter_context(httpx.Client(timeout=PATIENCE_S, headers={"authorization": f"Bearer {KEY}"}))
    return held.enter_context(client.stream("POST", f"{url}/completions", json={**LONG, **other}))


def sent(held: ExitStack, url: str, **other: Any) -> None:
    """Send a request for long streams, and read nothing; the connection ends with `held`."""
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps({**LONG, **other}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    held.enter_context(socket.create_connection((host, int(port)))).sendall(head.encode() + body)


def test_only_a_known_key_comes_in(url: str) -> None:
    assert client(url, KEY).models.list().data[0].id == "tern"
    for make in (lambda c: c.models.list(), lambda c: c.completions.create(model="tern", prompt="x", max_tokens=1)):
        with pytest.raises(openai.AuthenticationError) as caught:
            make(client(url, "sk-the-key-of-nobody"))
        assert caught.value.code == "invalid_api_key"
    root = url.removesuffix("/v1")
    assert httpx.get(f"{root}/health").status_code == 200
    assert [httpx.get(root + path).status_code for path in ("/metrics", "/v1/models", "/nothing")] == [401] * 3


def test_a_keys_limits_are_429_with_the_time_to_come_again(url: str) -> None:
    visitor = client(url, SMALL)
    refusals = []
    for _ in range(5):  # 100 tokens a minute at each of two gateways: at least one of five finds them used up
        try:
            visitor.completions.create(model="tern", prompt="def", max_tokens=90, extra_body={"ignore_eos": True})
        except openai.RateLimitError as error:
            refusals.append(error)
    assert len(refusals) >= 3
    assert refusals[0].type == "tokens"
    assert 1 <= int(refusals[0].response.headers["retry-after"]) <= 60
    assert client(url, KEY).completions.create(model="tern", prompt="def", max_tokens=9).usage.completion_tokens  # others are not held up


def test_what_a_key_has_left_stands_in_openais_headers(url: str) -> None:
    started = time.monotonic()
    for stream in (False, True):
        answer = client(url, READER).completions.with_raw_response.create(model="tern", prompt=[5, 6], max_tokens=30, stream=stream)
        said = {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit-")}
        assert (said["x-ratelimit-limit-requests"], said["x-ratelimit-limit-tokens"]) == ("50", "1000"), "of one of two gateways"
        assert int(said["x-ratelimit-remaining-requests"]) in (49, 48)
        refilled = (time.monotonic() - started) * 1000 / 60
        assert 1000 - 2 * 32 <= int(said["x-ratelimit-remaining-tokens"]) <= 1000 - 32 + refilled
        assert set(said) == {f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")}
    free = client(url, KEY).models.with_raw_response.list()
    assert not any(name.startswith("x-ratelimit") for name in free.headers)


def test_embeddings_count_against_a_keys_tokens(url: str) -> None:
    refusals = []
    for _ in range(3):  # 1,000 tokens a minute at each of two gateways
        try:
            client(url, READER).embeddings.create(model="tern", input=[5] * 900)
        except openai.RateLimitError as error:
            refusals.append(error)
    assert 1 <= len(refusals) < 3
    assert (refusals[0].type, refusals[0].code) == ("tokens", "rate_limit_exceeded")
    assert int(refusals[0].response.headers["retry-after"]) > 30
    assert int(refusals[0].response.headers["x-ratelimit-remaining-tokens"]) < 900


def refused(url: str) -> httpx.Response | None:
    """The answer to one more request of many streams, if it is refused at once."""
    try:
        response = httpx.post(f"{url}/completions", json={**LONG, "n": 24}, headers={"authorization": f"Bearer {KEY}"}, timeout=1.0)
    except httpx.ReadTimeout:
        return None
    return response if response.status_code == 429 else None


def test_a_full_queue_is_429_and_the_refused_hold_nothing(url: str) -> None:
    with ExitStack() as held:
        for _ in range(4):
            sent(held, url, n=24)
        response = until(lambda: refused(url))
        assert (response.json()["error"]["type"], response.json()["error"]["code"]) == ("overloaded", "overloaded")
        assert int(response.headers["retry-after"]) >= 1
    until(is_idle)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_blocks_at_once(url: str, stream: bool) -> None:
    until(is_idle)
    with ExitStack() as held:
        sent(held, url, stream=stream)
        until(lambda: replica()["running"])
    began, finished = time.monotonic(), replica()["finished"]
    until(is_idle)
    assert time.monotonic() - began < 10.0
    assert replica()["finished"] == finished  # they were ended, they did not end


def test_metrics_count_tokens_and_refusals_at_all_gateways(url: str) -> None:
    text = httpx.get(url.removesuffix("/v1") + "/metrics", auth=("scraper", KEY)).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert len({sample.labels["gateway"] for sample in samples if "gateway" in sample.labels}) == 2
    total = {name: sum(sample.value for sample in samples if sample.name == name) for name in {sample.name for sample in samples}}
    assert total["sterna_tokens_total"] > 0
    assert total["sterna_refused_total"] >= 4
    assert total["sterna_ttft_seconds_count"] > 0
    assert total["sterna_engine_tokens_generated_total"] >= total["sterna_tokens_total"]
    assert total["sterna_node_info"] == 1
    assert KEY not in text
    assert "team" not in text


def test_everything_listens_on_this_machine_only(url: str) -> None:
    port = int(url.removesuffix("/v1").rsplit(":", 1)[1])
    heard = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port]
    assert [address.ip for address in heard] == ["127.0.0.1"]


def test_no_key_is_in_a_log_or_in_what_ray_keeps(url: str) -> None:
    logging.shutdown()
    folder = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs"
    logs = [file for file in folder.rglob("*") if file.is_file()]
    assert any("serve" in file.parts for file in logs)
    for file in logs:
        raw = file.read_bytes()
        assert KEY.encode() not in raw, file
        assert SMALL.encode() not in raw, file
        assert READER.encode() not in raw, file
    assert KEY not in json.dumps(ray.serve.status().applications[APP].__dict__, default=repr)
    assert not any(KEY in value for value in os.environ.values())


def test_when_a_gateway_dies_its_streams_end_and_the_others_go_on(url: str) -> None:
    """The dead one's clients see their connection end without [DONE]; its streams leave the replica; everyone else's answers are whole."""
    until(is_idle)
    gateways = ray.serve.get_deployment_handle("gateway", APP)
    streams: list[tuple[str, Iterator[str]]] = []
    with ExitStack() as held:
        while len({where for where, _ in streams}) < 2 or len(streams) < 6:
            lines = opened(held, url, n=1, max_tokens=2500).iter_lines()
            name = json.loads(next(lines).removeprefix("data: "))["id"]
            found = zip(*(gateways.broadcast(what).results(timeout_s=PATIENCE_S) for what in ("figures", "journal")), strict=True)
            streams.append((next(owner[0] for owner, rows in found if any(row["stream"].startswith(name) for row in rows)), lines))
        doomed = streams[0][0]
        ray.kill(ray.get_actor(f"SERVE_REPLICA::{APP}#gateway#{doomed}", namespace="serve"))
        assert [is_whole(lines) for _, lines in streams] == [where != doomed for where, _ in streams]
    until(is_idle)
    until(lambda: len(gateways.broadcast("figures").results(timeout_s=PATIENCE_S, return_exceptions=True)) == 2)  # Serve replaces it
    assert client(url, KEY).completions.create(model="tern", prompt="def", max_tokens=9).usage.completion_tokens


@pytest.mark.slow
def test_a_request_that_takes_too_long_ends_with_an_error(url: str) -> None:
    """Twenty-four streams of 8,000 tokens; the limit is 40 s."""
    with ExitStack() as held:
        lines = [line for line in opened(held, url, n=24).iter_lines() if line.startswith("data: ")]
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "request_timeout"
    until(is_idle)
