"""The whole service at /status and on the live page: two real gateways, a replica, the books, and streams that run meanwhile."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.ledger_file import open_ledger
from serve.app import free_port, running
from serve.config import ServeConfig
from serve.engine.config import EngineConfig
from tests.browser import Browser, executable

KEY = "sk-overview-0123456789"
AUTH = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("books") / "costs.jsonl"


@pytest.fixture(scope="module")
def url(ray_session: None, tiny_model_dir: Path, ledger: Path) -> Iterator[str]:
    (ledger.parent / "keys").write_text(KEY)
    engine = EngineConfig(dtype="float32", num_threads=1, max_sequences=4)
    config = ServeConfig(
        model=str(tiny_model_dir), name="tern", port=free_port(), engine=engine, gateways=2, ledger=str(ledger),
        api_keys=str(ledger.parent / "keys"), node_prices={"on-demand": 3.6},
    )  # fmt: skip
    with running(config) as base:
        yield base.removesuffix("/v1")


def stream(url: str, tokens: int) -> int:
    """Ask for a stream and read it to its end; the number of its events."""
    asked = {"model": "tern", "prompt": "def add(left", "max_tokens": tokens, "stream": True, "logit_bias": {"0": -100}}
    with httpx.stream("POST", f"{url}/v1/completions", json=asked, headers=AUTH, timeout=60, trust_env=False) as answer:
        assert answer.status_code == 200, answer.read()
        return sum(line.startswith("data:") for line in answer.iter_lines())


def status(url: str) -> dict[str, Any]:
    time.sleep(0.6)  # longer than an answer is good for
    answer = httpx.get(f"{url}/status", headers=AUTH, timeout=10, trust_env=False)
    assert answer.status_code == 200
    return answer.json()


def test_every_gateway_tells_of_all(url):
    for _ in range(6):
        stream(url, 8)
    told = [status(url) for _ in range(6)]
    assert {len(each["gateways"]) for each in told} == {2}
    names = {gateway["name"] for gateway in told[0]["gateways"]}
    assert {each["gateway"] for each in told} <= names
    assert {each["totals"]["tokens"] for each in told} == {48}
    assert {(row["deployment"], row["slots"]) for each in told for row in each["replicas"]} == {("on_demand", 4)}
    (node,) = told[0]["nodes"]
    assert (node["market"], node["replicas"], node["gateway"], node["head"], node["price_per_hour"]) == ("on-demand", 1, True, True, 3.6)


def test_what_it_costs_is_counted_on_and_kept(url, ledger):
    stream(url, 8)
    first = status(url)["costs"]
    time.sleep(1.0)
    second = status(url)["costs"]
    assert 0.0009 < second["dollars"] - first["dollars"] < 0.01, "a thousandth of a dollar a second"
    assert second["dollars"] == second["on_demand_dollars"]
    deadline = time.monotonic() + 15
    while (costs := (told := status(url))["costs"])["tokens"] != told["totals"]["tokens"]:
        assert time.monotonic() < deadline, "the books never heard of all tokens"
    assert costs["dollars_per_million_tokens"] > 0
    assert open_ledger(str(ledger)).lives[0].market == "on-demand"
    metrics = httpx.get(f"{url}/metrics", headers=AUTH, timeout=10, trust_env=False).text
    assert 'sterna_cost_dollars_total{market="on-demand"}' in metrics


@pytest.mark.parametrize("path", ["/", "/status"])
def test_without_a_key_nothing_is_told(url, path):
    answer = httpx.get(f"{url}{path}", timeout=10, trust_env=False)
    assert answer.status_code == 401
    assert "basic" in answer.headers["www-authenticate"].lower(), "so that a browser asks for it"


@pytest.mark.skipif(executable() is None, reason="no browser here: install chromium, or name one in STERNA_BROWSER")
def test_a_browser_shows_streams_as_they_run(url):
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            stream(url, 400)

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        with Browser() as browser:
            password = base64.b64encode(f"any:{KEY}".encode()).decode()
            browser.open(f"{url}/", headers={"authorization": f"Basic {password}"})
            browser.until("document.querySelectorAll('.lane').length > 0")
            browser.until("/^[1-9]/.test(document.querySelector('.tile b').innerText)")
            assert browser.run("document.getElementById('health').innerText") == "serving"
            assert browser.run("document.getElementById('model').innerText") == "tern"
            assert browser.run("document.querySelectorAll('#gateways .chip').length") == 2
            assert browser.run("document.querySelectorAll('.node').length") == 1
            assert browser.complaints() == []
    finally:
        stop.set()
        for client in clients:
            client.join(30)
