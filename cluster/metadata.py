"""What a cloud says about a machine that it will take away: notices, and the places where they appear.

Promise: what an answer means is decided by pure functions (`parse_…`); a source asks its place once per `check`, and an answer that
is not understood is an error that names the place, never silence. Price: one or two HTTP requests per check.
Source: the clouds' documentation of their instance metadata services (AWS version 2 with session tokens; Google Cloud; Azure's
scheduled events).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Protocol

import httpx

__all__ = [
    "AwsMetadata", "AzureMetadata", "GcpMetadata", "Notice", "NoticeFile", "Source", "parse_aws_action", "parse_aws_rebalance",
    "parse_azure_events", "parse_file", "parse_gcp_preempted",
]  # fmt: skip

GCP_WARNING_S = 30.0  # Google stops a preempted machine about 30 s after it says so
FILE_WARNING_S = 120.0
_AWS_URL = "http://169.254.169.254"
_GCP_URL = "http://metadata.google.internal"
_AZURE_URL = "http://169.254.169.254"
_TOKEN_TTL_S = 21600
_AZURE_EVENTS_VERSION, _AZURE_INSTANCE_VERSION = "2020-07-01", "2021-02-01"
_AZURE_ENDS = {"Preempt": "evicts", "Terminate": "deletes", "Redeploy": "moves", "Reboot": "restarts"}
"""Scheduled events that end what runs on the machine, as verbs. A Freeze is over after some seconds, and ends nothing."""
_AZURE_FIRST_S = 30.0
"""Azure turns its scheduled events on when they are first asked for, and that answer may take long (their word: up to two minutes)."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What a cloud has said about this machine."""

    deadline: float
    """When the machine goes, in unix seconds; `math.inf` if it may, at an unknown time."""
    reason: str
    """The cloud's words, for people."""
    event: str = ""
    """The cloud's id of the event, where it has one that may be acknowledged."""

    @property
    def final(self) -> bool:
        """Whether the machine will certainly be taken."""
        return math.isfinite(self.deadline)


def parse_aws_action(body: str) -> Notice:
    """The notice in `spot/instance-action`, such as {"action": "terminate", "time": "2026-11-22T08:22:00Z"}.

    >>> parse_aws_action('{"action": "stop", "time": "1970-01-01T00:02:00Z"}')
    Notice(deadline=120.0, reason='AWS will stop this spot instance', event='')
    """
    data = _object(body, "spot/instance-action")
    if not isinstance(data.get("action"), str):
        raise ValueError(f"spot/instance-action: no action in {body!r}")
    return Notice(_unix_time(data.get("time"), "spot/instance-action"), f"AWS will {data['action']} this spot instance")


def parse_aws_rebalance(body: str) -> Notice:
    """The notice in `events/recommendations/rebalance`, such as {"noticeTime": "2026-11-22T08:22:00Z"}: a risk, without a deadline."""
    data = _object(body, "recommendations/rebalance")
    _unix_time(data.get("noticeTime"), "recommendations/rebalance")
    return Notice(math.inf, "AWS recommends to rebalance: this spot instance is at elevated risk")


def parse_gcp_preempted(body: str, now: float) -> Notice | None:
    """The notice in `instance/preempted`, TRUE or FALSE, first seen at `now` (unix seconds)."""
    word = body.strip().upper()
    if word not in ("TRUE", "FALSE"):
        raise ValueError(f"instance/preempted: expected TRUE or FALSE, not {body[:80]!r}")
    return Notice(now + GCP_WARNING_S, "Google Cloud preempts this instance") if word == "TRUE" else None


def parse_azure_events(body: str, machine: str, now: float) -> tuple[int, Notice | None]:
    """The document's incarnation, and the most urgent of its events that ends `machine` (the virtual machine's own name).

    Azure tells every machine of a scale set about all of them: only events that list this one count. An event that has started is due
    `now` (unix seconds); one that is over is none.
    """
    data = _object(body, "scheduledevents")
    events, incarnation = data.get("Events"), data.get("DocumentIncarnation")
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise ValueError(f"scheduledevents: no list of Events in {body[:80]!r}")
    if not isinstance(incarnation, int):
        raise ValueError(f"scheduledevents: no DocumentIncarnation in {body[:80]!r}")
    notices = [notice for event in events if (notice := _azure_notice(event, machine, now))]
    return incarnation, min(notices, key=lambda notice: notice.deadline, default=None)


def _azure_notice(event: dict[str, object], machine: str, now: float) -> Notice | None:
    kind, resources = event.get("EventType"), event.get("Resources")
    verb = _AZURE_ENDS.get(kind) if isinstance(kind, str) else None
    if verb is None or event.get("EventStatus") not in ("Scheduled", "Started"):
        return None
    if not isinstance(resources, list) or machine.lower() not in (str(name).lower() for name in resources):
        return None
    moment = event.get("NotBefore")
    deadline = _http_time(moment, "scheduledevents") if event["EventStatus"] == "Scheduled" and moment else now
    return Notice(deadline, f"Azure {verb} this virtual machine ({kind})", str(event.get("EventId", "")))


def parse_file(body: str, written: float) -> Notice:
    """The notice in a file that was written at `written` (unix seconds): empty, or JSON with `seconds` or `time`, and `reason`.

    >>> parse_file('{"seconds": 30, "reason": "maintenance"}', written=100.0)
    Notice(deadline=130.0, reason='maintenance', event='')
    """
    if not body.strip():
        return Notice(written + FILE_WARNING_S, "a notice file")
    data = _object(body, "notice file")
    unknown = set(data) - {"seconds", "time", "reason", "action"}
    if unknown:
        raise ValueError(f"notice file: unknown key {sorted(unknown)[0]!r}; known are seconds, time, reason, action")
    reason = str(data.get("reason", "a notice file"))
    if "time" in data:
        return Notice(_unix_time(data["time"], "notice file"), reason)
    seconds = data.get("seconds", FILE_WARNING_S)
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds < math.inf:
        raise ValueError(f"notice file: seconds is {seconds!r}; must be a number of seconds")
    return Notice(written + seconds, reason)


def _object(body: str, what: str) -> dict[str, object]:
    try:
        data = json.loads(body)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what}: not JSON ({error}): {body[:80]!r}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{what}: expected an object, not {body[:80]!r}")
    return data


def _unix_time(value: object, what: str) -> float:
    try:
        moment = datetime.fromisoformat(value)  # type: ignore[arg-type]  # a non-string raises TypeError
    except (TypeError, ValueError):
        raise ValueError(f"{what}: {value!r} is not an ISO 8601 time") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _http_time(value: object, what: str) -> float:
    """Unix seconds of "Mon, 19 Sep 2016 18:29:47 GMT"."""
    try:
        return parsedate_to_datetime(str(value)).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        raise ValueError(f"{what}: {str(value)[:80]!r} is not an HTTP date") from None


class Source(Protocol):
    """Somewhere a notice may appear."""

    def check(self) -> Notice | None:
        """The notice, if there is one. Raises httpx.HTTPError, OSError or ValueError when that cannot be known now."""


class AwsMetadata:
    """AWS instance metadata, version 2: every request carries a session token, which is renewed when it is refused."""

    def __init__(self, client: httpx.Client, base_url: str | None = None, *, rebalance: bool = True) -> None:
        self._client, self._base, self._rebalance = client, (base_url or _AWS_URL).rstrip("/"), rebalance
        self._token: str | None = None

    def check(self) -> Notice | None:
        """The interruption notice, else the rebalance recommendation if that is watched too."""
        if (body := self._get("spot/instance-action")) is not None:
            return parse_aws_action(body)
        if self._rebalance and (body := self._get("events/recommendations/rebalance")) is not None:
            return parse_aws_rebalance(body)
        return None

    def renew(self) -> None:
        """Ask for a session token. The answer to this request alone travels no more hops than the instance allows."""
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)}
        try:
            self._token = self._client.put(f"{self._base}/latest/api/token", headers=headers).raise_for_status().text
        except httpx.ReadTimeout:
            raise httpx.ReadTimeout(
                "no session token arrived; in a container, the instance's HttpPutResponseHopLimit must be 2 or more"
            ) from None

    def _get(self, path: str) -> str | None:
        for attempt in (1, 2):
            if self._token is None:
                self.renew()
            headers = {"X-aws-ec2-metadata-token": self._token or ""}
            response = self._client.get(f"{self._base}/latest/meta-data/{path}", headers=headers)
            if response.status_code == 404:
                return None
            if response.status_code == 401 and attempt == 1:
                self._token = None  # it has expired
                continue
            return response.raise_for_status().text
        raise AssertionError("unreachable")


class GcpMetadata:
    """Google Cloud instance metadata. The deadline counts from when TRUE was seen first."""

    def __init__(self, client: httpx.Client, base_url: str | None = None, now: Callable[[], float] = time.time) -> None:
        self._client, self._base, self._now = client, (base_url or _GCP_URL).rstrip("/"), now
        self._first: Notice | None = None

    def check(self) -> Notice | None:
        """The preemption, if it has been announced."""
        if self._first is None:
            response = self._client.get(f"{self._base}/computeMetadata/v1/instance/preempted", headers={"Metadata-Flavor": "Google"})
            self._first = parse_gcp_preempted(response.raise_for_status().text, self._now())
        return self._first


class AzureMetadata:
    """Azure's scheduled events for this virtual machine."""

    def __init__(self, client: httpx.Client, base_url: str | None = None, now: Callable[[], float] = time.time) -> None:
        self._client, self._base, self._now = client, (base_url or _AZURE_URL).rstrip("/"), now
        self._machine = ""
        self._known: tuple[int, Notice | None] | None = None

    def identify(self) -> str:
        """This virtual machine's name, by which events list it."""
        url = f"{self._base}/metadata/instance/compute/name"
        parameters = {"api-version": _AZURE_INSTANCE_VERSION, "format": "text"}
        self._machine = self._client.get(url, params=parameters, headers={"Metadata": "true"}).raise_for_status().text.strip()
        if not self._machine:
            raise ValueError("metadata/instance/compute/name: is empty")
        return self._machine

    def check(self) -> Notice | None:
        """The most urgent event that ends this machine. The same document gives the same notice, whenever it is read."""
        machine = self._machine or self.identify()
        patience = httpx.USE_CLIENT_DEFAULT if self._known else _AZURE_FIRST_S
        response = self._client.get(self._events, headers={"Metadata": "true"}, timeout=patience)
        found = parse_azure_events(response.raise_for_status().text, machine, self._now())
        if self._known is None or found[0] != self._known[0]:
            self._known = found
        return self._known[1]

    def acknowledge(self, notice: Notice) -> None:
        """Tell Azure that it need not wait for the deadline: nothing is left here that needs the time."""
        body = {"StartRequests": [{"EventId": notice.event}]}
        self._client.post(self._events, json=body, headers={"Metadata": "true"}).raise_for_status()

    @property
    def _events(self) -> str:
        return f"{self._base}/metadata/scheduledevents?api-version={_AZURE_EVENTS_VERSION}"


class NoticeFile:
    """A file whose appearance is a notice: for tests, drills, and machines with a notifier of their own."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).expanduser()

    def check(self) -> Notice | None:
        """The notice, if the file is there."""
        try:
            body, written = self._path.read_text(encoding="utf-8"), self._path.stat().st_mtime
        except FileNotFoundError:
            return None
        return parse_file(body, written)
