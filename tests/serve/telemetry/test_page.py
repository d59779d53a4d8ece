"""The live page in a real browser, before a server that says what the test wants it to have said."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from serve.telemetry.page import PAGE
from tests.browser import Browser, executable

pytestmark = pytest.mark.skipif(executable() is None, reason="no browser here: install chromium, or name one in STERNA_BROWSER")


def example(now: float) -> dict[str, Any]:
    """A service in the middle of a preemption."""

    def node(name: str, market: str, **more: Any) -> dict[str, Any]:
        plain = {"id": name, "market": market, "type": "m7i.4xlarge", "zone": "us-west-2a", "price_per_hour": 0.29, "since_s": now - 4000,
                 "address": "10.0.0.7", "head": False, "gateway": False, "draining": False, "deadline_s": None, "replicas": 1}  # fmt: skip
        return plain | more

    def replica(name: str, home: str, market: str, streams: int, **more: Any) -> dict[str, Any]:
        return {"name": name, "deployment": market, "node": home, "market": market, "streams": streams, "slots": 8, "running": streams,
                "waiting": 0, "kv_used": 0.4, "draining": False} | more  # fmt: skip

    def stay(replica: str, home: str, start: float, end: float | None, how: str = "new") -> dict[str, Any]:
        ago = None if end is None else now - end
        return {"replica": replica, "node": home, "deployment": "spot", "how": how, "start_s": now - start, "first_s": now - start + 0.1,
                "last_s": ago or now, "end_s": ago, "tokens": 120}  # fmt: skip

    def stream(number: int, *stays: dict[str, Any], state: str = "running") -> dict[str, Any]:
        return {"id": f"cmpl-{number:06x}f00-0", "gateway": "gw-one", "state": state, "start_s": now - 50, "tokens": 240 + number,
                "stays": list(stays)}  # fmt: skip

    def move(n: int, how: str, why: str) -> dict[str, Any]:
        return {"at_s": now - 3 - n, "gateway": "gw-one", "stream": f"cmpl-{n:06x}f00", "how": how, "why": why, "from": "r1", "to": "r2",
                "from_node": "n1", "to_node": "n2", "gap_s": 0.08 + n, "bytes": 1, "tokens_computed_again": 3}  # fmt: skip

    paid = {"market": "spot", "instance_type": "m7i.4xlarge", "machines": 2, "hours": 2.2, "dollars": 0.64, "on_demand_dollars": 1.77}
    fixed = {"market": "on-demand", "instance_type": "m7i.2xlarge", "machines": 1, "hours": 1.1, "dollars": 0.44, "on_demand_dollars": 0.44}
    return {
        "now_s": now, "gateway": "gw-one", "model": "tern-7b",
        "gateways": [{"name": "gw-one", "live": 9}, {"name": "gw-two", "live": 3}],
        "totals": {"live": 12, "paused": 1, "waiting": 2, "tokens": 1_000_000 + 500 * (now % 1000),
                   "moves": {"kv": 7, "recompute": 2, "crash": 1}},
        "nodes": [
            node("n0", "on-demand", type="m7i.2xlarge", head=True, gateway=True, price_per_hour=0.4032),
            node("n1", "spot", draining=True, deadline_s=now + 23), node("n2", "spot", zone="us-west-2b", type="c7i.4xlarge"),
        ],
        "replicas": [
            replica("od-r0", "n0", "on-demand", 3), replica("spot-r1", "n1", "spot", 2, draining=True), replica("spot-r2", "n2", "spot", 7),
        ],
        "streams": [
            stream(1, stay("spot-r1", "n1", 50, 20), stay("spot-r2", "n2", 19.9, None, "kv")),
            stream(2, stay("spot-r1", "n1", 48, 15), stay("od-r0", "n0", 13, None, "crash")),
            stream(3, stay("spot-r1", "n1", 40, None)), stream(4, stay("od-r0", "n0", 30, None)),
            stream(5, stay("spot-r1", "n1", 30, 2), state="paused"), *(stream(n, stay("spot-r2", "n2", n, None)) for n in range(6, 13)),
        ],
        "moves": [
            move(0, "kv", "its KV is there before the deadline"), move(2, "crash", "<img src=x onerror=alert(1)>"),
            move(9, "recompute", ""),
        ],
        "costs": {"dollars": 1.08, "on_demand_dollars": 2.21, "tokens": 1_400_000, "dollars_per_million_tokens": 0.771,
                  "on_demand_dollars_per_million_tokens": 1.58, "unpriced_hours": 0.0, "by": [fixed, paid], "since_s": now - 4000,
                  "prices": "dollars per hour, from AWS at 2026-11-22 11:40 UTC (now)", "per_hour": 0.98, "on_demand_per_hour": 2.0},
        "decisions": [{"at_s": now - 30, "what": "2 spot · 1 on demand", "reasons": ["812 tokens/s at 512 a replica", "2 of 2 on spot"]}],
    }  # fmt: skip


class Service(http.server.ThreadingHTTPServer):
    """Serves the page, and `document` at /status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.code = 200
        self.change: dict[str, Any] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        page = self.path == "/"
        body = PAGE.encode() if page else json.dumps(example(time.time()) | self.server.change).encode()
        self.send_response(200 if page else self.server.code)
        self.send_header("Content-Type", "text/html; charset=utf-8" if page else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(1280, 1100) as opened:
        yield opened


def section(browser: Browser, name: str) -> str:
    return str(browser.run(f"document.getElementById({name!r}).innerText"))


def test_two_seconds_suffice(service, browser):
    browser.open(service.url)
    began = time.monotonic()
    browser.until("document.getElementById('tiles').innerText.includes('0.49')")
    assert time.monotonic() - began < 5
    tiles = section(browser, "tiles").split("\n")
    assert "12" in tiles
    assert "2 wait for a first token · 1 between machines" in tiles
    assert "1 spot · 1 on demand · 1 leaving" in tiles
    assert "7 with KV · 2 recomputed · 1 after a crash" in tiles
    assert "$0.771" in tiles
    assert section(browser, "health") == "1 machine leaving"
    assert "leaves in 23 s" in section(browser, "machines")
    assert "gateway one · 9 streams" in section(browser, "gateways")
    assert browser.run("document.querySelector('.chip.me').innerText").endswith("9 streams")
    browser.until("/^[1-9]/.test(document.querySelector('.tile b').innerText)")  # tokens a second, from the second look on
    assert browser.complaints() == []


def test_texts_from_the_service_are_only_texts(service, browser):
    browser.open(service.url)
    browser.until("document.getElementById('moves').innerText.includes('onerror')")
    assert browser.run("document.querySelector('main img')") is None


def test_each_stream_is_a_lane_with_its_stays_and_moves(service, browser):
    browser.open(service.url)
    browser.until("document.querySelectorAll('.lane').length == 12")
    assert browser.run("document.querySelectorAll('.lane')[0].querySelectorAll('i').length") == 2
    assert browser.run("document.querySelectorAll('.lane')[0].querySelectorAll('u.kv').length") == 1
    assert browser.run("document.querySelectorAll('.lane')[1].querySelectorAll('u.crash').length") == 1
    first, second = (browser.run(f"document.querySelectorAll('.lane i')[{n}].style.backgroundColor") for n in (0, 1))
    assert first != second, "another machine, another colour"


def test_an_idle_service_without_books_or_replicas_says_so(service, browser):
    service.change = {"costs": None, "streams": [], "moves": [], "decisions": [], "replicas": []}
    browser.open(service.url)
    browser.until("document.getElementById('health').innerText == 'no replica takes streams'")
    text = browser.text()
    for words in ("The books do not answer", "No stream now", "No stream has moved yet", "the number of replicas is fixed"):
        assert words in text


def test_machines_without_a_price_are_no_zero(service, browser):
    costs = example(time.time())["costs"] | {"dollars": None, "on_demand_dollars": None, "dollars_per_million_tokens": None, "by": [],
                                             "unpriced_hours": 3.0}  # fmt: skip
    service.change = {"costs": costs}
    browser.open(service.url)
    browser.until("document.getElementById('tiles').innerText.includes('no price for these machines')")
    assert "3.00 machine-hours have no known price" in section(browser, "cost")


@pytest.mark.parametrize(("code", "words"), [(401, "give it as the password"), (500, "answers with status 500")])
def test_trouble_is_told_and_over_when_it_is_over(service, browser, code, words):
    browser.open(service.url)
    browser.until("document.querySelectorAll('.lane').length")
    service.code = code
    browser.until("document.body.classList.contains('stale')")
    assert words in section(browser, "trouble")
    service.code = 200
    browser.until("!document.body.classList.contains('stale')")


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_can_both_be_read(service, browser, dark):
    """Every colour of text against what is behind it: at least the 4.5 that WCAG asks for small text, soft words 4."""
    browser.open(service.url, dark=dark)
    browser.until("document.querySelectorAll('.lane').length")
    back = browser.run("getComputedStyle(document.querySelector('.tile')).backgroundColor")
    assert (luminance(back) < 0.1) == dark
    for selector, least in ((".tile b", 7), (".soft", 4), (".chip.spot", 3), (".how.kv", 4), (".how.crash", 4)):
        ink = browser.run(f"getComputedStyle(document.querySelector({selector!r})).color")
        assert contrast(ink, back) >= least, (selector, ink, back)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [400, 1280])
def test_it_fits_a_phone_and_a_screen(service, browser, width):
    browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.open(service.url)
    browser.until("document.querySelectorAll('.lane').length")
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.ask("Emulation.clearDeviceMetricsOverride")
