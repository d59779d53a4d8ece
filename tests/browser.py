"""A real browser for tests: Chromium without a window, spoken to over its DevTools protocol, through a pair of pipes."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """A browser on this machine: `STERNA_BROWSER`, or one on the path."""
    return os.environ.get("STERNA_BROWSER") or next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page in a fresh profile; a context manager."""

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        heard, self._out = _pipe()
        self._in, said = _pipe()
        command = [
            str(executable()), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--remote-debugging-pipe", f"--user-data-dir={self._folder.name}", f"--window-size={width},{height}", "about:blank",
        ]  # fmt: skip
        quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
        ears = [(os.POSIX_SPAWN_DUP2, heard, 3), (os.POSIX_SPAWN_DUP2, said, 4)]  # the browser hears on 3 and speaks on 4
        self._process = os.posix_spawn(command[0], command, os.environ, file_actions=[*quiet, *ears])
        os.close(heard)
        os.close(said)
        self._numbers = itertools.count(1)
        self._rest = b""
        self._page: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        """What the browser told unasked: exceptions, messages of the console."""
        pages = self.ask("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in pages if target["type"] == "page")
        self._page = {"sessionId": self.ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def _next(self) -> dict[str, Any]:
        """The next message, of which each ends with a zero byte."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], 30)
            assert ready, "the browser says nothing"
            part = os.read(self._in, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command, and its answer."""
        number = next(self._numbers)
        os.write(self._out, json.dumps({"id": number, "method": method, "params": parameters, **self._page}).encode() + b"\0")
        while (message := self._next()).get("id") != number:
            self.events.append(message)
        assert "error" not in message, message["error"]
        return message["result"]

    def open(self, url: str, *, dark: bool = False, headers: dict[str, str] | None = None) -> None:
        """Go to a page, as one who likes it light or dark."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.ask("Network.setExtraHTTPHeaders", headers=headers or {})
        self.events.clear()
        self.ask("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str, seconds: float = 20.0) -> Any:
        """The value of an expression once it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(condition)):
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {condition}; the page reads: {self.text()[:2000]}"
            time.sleep(0.1)
        return value

    def text(self) -> str:
        """What a person reads on the page."""
        return str(self.run("document.body.innerText"))

    def complaints(self) -> list[str]:
        """Exceptions and errors that the page has caused so far."""
        self.run("1")
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]

    def picture(self, path: str | Path) -> None:
        """Save what is to be seen as a png."""
        Path(path).write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._process, signal.SIGTERM)
        os.waitpid(self._process, 0)
        os.close(self._in)
        os.close(self._out)
        self._folder.cleanup()


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are not 3 and 4, which mean something else to the browser."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
