"""Who comes in: keys and their limits, how many may wait, and for how long; everyone else gets a 429 at once, and when to come again.

Promise: a request is let in only if its key may (requests and tokens a minute, requests at once), if no more than `max_queue` streams then
wait for their first token, and if its own can be expected within `max_ttft_s`, with the margin that experience asks for
(serve/limits/first_token.py). While a place is free it is let in whatever was experienced, so that the service never shuts itself.
Embeddings
are counted apart (serve/limits/backlog.py), for they take turns with the streams instead of their places: the same two limits hold for
how many
there are and for what they add to each other's time. A refusal takes no place and says when to come again. Decides without touching: the
clock and the number of places are handed in.
Price: a pass over the gateway's live streams per request.
Source: early rejection by predicted time to first token as in Mooncake (arXiv 2407.00079); OpenAI's rate-limit errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Literal, Protocol

from serve.engine.request import Request
from serve.limits.allowance import Allowance
from serve.limits.backlog import Backlog, Reading
from serve.limits.first_token import Expectation, FirstToken, Stream
from serve.limits.keys import ApiKey, find, presented
from serve.protocol import ApiError

__all__ = ["Admission", "Closing", "Limits", "Observer", "Reason", "Refusal", "Visit", "WrongKey"]

Reason = Literal["key", "key_requests", "key_tokens", "key_streams", "queue", "ttft"]


class Refusal(ApiError):
    """429: too much, for a reason that the figures count."""

    def __init__(self, reason: Reason, message: str, retry_after_s: float) -> None:
        overloaded = reason in ("queue", "ttft")
        super().__init__(429, f"{message}; try again later", code="overloaded" if overloaded else "rate_limit_exceeded")
        self.reason = reason
        self.headers = {"retry-after": str(max(1, ceil(retry_after_s)))}

    @property
    def type(self) -> str:
        """What there was too much of, as OpenAI names it."""
        return {"key_tokens": "tokens", "queue": "overloaded", "ttft": "overloaded"}.get(self.reason, "requests")


class WrongKey(ApiError):
    """401: no key, or none that is known here. Which of the two is all that it tells."""

    def __init__(self, given: bool) -> None:
        message = "the API key is not known here" if given else "an API key is needed: send the header Authorization: Bearer KEY"
        super().__init__(401, message, code="invalid_api_key")
        self.headers = {"www-authenticate": 'Basic realm="sterna"'}  # so that a browser asks for it


class Closing(ApiError):
    """503: the service is being stopped, and goes on with the streams it has."""

    def __init__(self) -> None:
        super().__init__(503, "the server is being stopped; ask another one, or again in a while", code="closing")
        self.headers = {"retry-after": "10"}


class Observer(Protocol):
    """Told what happens (serve.telemetry.metrics.GatewayMetrics)."""

    def refused(self, reason: Reason) -> None:
        """A request was not let in."""

    def admitted(self, num_prompt: int) -> None:
        """One was, with so many prompt tokens."""

    def heard(self, num_tokens: int, since_s: float, *, first: bool) -> None:
        """A stream got tokens, `since_s` after its latest or, if they are its first, after its request came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a gateway takes."""

    max_queue: int
    """Streams that wait for their first token; requests for embeddings."""
    max_ttft_s: float | None = None
    """The longest that a request may have to wait for its first token, or embeddings for others; None for no limit."""
    num_gateways: int = 1
    """Gateways that share the places and the keys' limits."""


class Admission:
    """One gateway's door."""

    def __init__(
        self, keys: Sequence[ApiKey], limits: Limits, *, slots: Callable[[], int], clock: Callable[[], float], observer: Observer
    ) -> None:
        """`slots`: how many streams the replicas can run at once, for all gateways. Without keys everyone may come."""
        self.limits, self.slots, self.clock, self.observer = limits, slots, clock, observer
        self.first_token, self.backlog = FirstToken(), Backlog()
        self.closed = False
        """Whether nobody is let in any more."""
        self.streams: dict[int, Stream] = {}
        """The live ones in order of arrival, by their objects' ids."""
        self._keys = tuple(keys)
        self._allowances = {key.name: Allowance(key, limits.num_gateways) for key in keys}

    def enter(self, authorization: str | None, *, counts: bool = True) -> Visit:
        """A request comes, its body unread. WrongKey, Refusal if its key asks too often, Closing; `counts`: whether that matters."""
        if self.closed and counts:
            raise Closing()
        key = self._key(authorization)
        visit = Visit(self, None if key is None else self._allowances[key.name], self.clock())
        if counts:
            visit.take_request()
        return visit

    def expect(self, num_prompt: int, num_streams: int, since_s: float) -> Expectation:
        """What a request that came at `since_s` can expect. Refusal if that is too much."""
        now_s, live = self.clock(), self.streams.values()
        slots = max(self.slots() // self.limits.num_gateways, 1)
        expected = self.first_token.expect(live, slots, num_prompt)
        if expected.waits:
            num_waiting = sum(stream.first_s is None for stream in live)
            if num_waiting + num_streams > self.limits.max_queue:
                raise self.refusal("queue", f"{num_waiting} streams wait for their first token here", expected.seconds)
            likely_s = expected.seconds + self.first_token.margin_s(live, now_s) + now_s - since_s
            limit_s = self.limits.max_ttft_s
            if limit_s is not None and likely_s > limit_s:
                message = f"the first token would take about {likely_s:.1f} s, and {limit_s:g} s is the limit here"
                raise self.refusal("ttft", message, likely_s - limit_s)
        return expected

    def expect_reading(self, num_tokens: int) -> None:
        """Refusal for embeddings of `num_tokens` that would have to wait among too many, or for too long."""
        delay_s, limit_s = self.backlog.delay_s(num_tokens), self.limits.max_ttft_s
        if len(self.backlog) >= self.limits.max_queue:
            raise self.refusal("queue", f"{len(self.backlog)} requests for embeddings are here already", delay_s)
        if limit_s is not None and delay_s > limit_s:
            message = f"the embeddings asked for before would hold these up for about {delay_s:.1f} s, and {limit_s:g} s is the limit here"
            raise self.refusal("ttft", message, delay_s - limit_s)

    def refusal(self, reason: Reason, message: str, retry_after_s: float) -> Refusal:
        """A counted refusal, to be raised."""
        self.observer.refused(reason)
        return Refusal(reason, message, retry_after_s)

    def _key(self, authorization: str | None) -> ApiKey | None:
        if not self._keys:
            return None
        secret = presented(authorization)
        key = find(self._keys, secret)
        if key is None:
            self.observer.refused("key")
            raise WrongKey(given=secret is not None)
        return key


@dataclass(slots=True)
class Visit:
    """One HTTP request, from its headers to its last byte."""

    admission: Admission
    allowance: Allowance | None
    entered_s: float
    _counted: bool = False
    _num_prompt: int = 0
    _reserved: int = 0
    _streams: list[Stream] = field(default_factory=list)
    _reading: Reading | None = None

    def take_request(self) -> None:
        """Count it against its key's requests. Refusal if they are too many."""
        if self.allowance is None:
            return
        if self.allowance.is_busy:
            raise self._refusal("key_streams", f"this key has {self.allowance.num_streams} requests at once, its limit", 1.0)
        wait_s = self.allowance.take_request(self.entered_s)
        if wait_s:
            raise self._refusal("key_requests", "this key's requests of the minute are used up", wait_s)
        self.allowance.num_streams += 1
        self._counted = True

    def admit(self, requests: Sequence[Request]) -> list[Request]:
        """Let its streams in: the requests as they may run, in the name of the key's owner. Refusal, with nothing changed."""
        prompts = [len(request.prompt) if request.choice == 0 else 0 for request in requests]  # other choices find it computed
        expected = self.admission.expect(sum(prompts), len(requests), self.entered_s)
        self.reserve(sum(prompts), sum(request.sampling.max_tokens for request in requests))
        ahead = sum(stream.num_prompt for stream in self.admission.streams.values() if stream.first_s is None)
        for num_prompt, request in zip(prompts, requests, strict=True):
            stream = Stream(num_prompt, request.sampling.max_tokens, self.entered_s, expected, ahead)
            self._streams.append(stream)
            self.admission.streams[id(stream)] = stream
        self.admission.observer.admitted(sum(prompts))
        if self.allowance is None:
            return list(requests)
        name = self.allowance.key.name
        return [replace(request, tenant=name, client=f"{name}/{request.client}") for request in requests]

    def read(self, num_tokens: int) -> None:
        """Let its texts be read, as embeddings. Refusal, with nothing changed."""
        self.admission.expect_reading(num_tokens)
        self.reserve(num_tokens)
        self._reading = self.admission.backlog.add(num_tokens, self.admission.clock())
        self.admission.observer.admitted(num_tokens)

    def was_read(self) -> None:
        """They were, to their end."""
        if self._reading is not None:
            self.admission.backlog.read(self._reading, self.admission.clock())

    def headers(self) -> dict[str, str]:
        """What its answer says of its key's limits."""
        return {} if self.allowance is None else self.allowance.headers(self.admission.clock())

    def reserve(self, num_prompt: int, most_output: int = 0) -> None:
        """Set aside what it may use of its key's tokens. Refusal if they are not there."""
        if self.allowance is not None:
            wait_s = self.allowance.take_tokens(num_prompt + most_output, self.admission.clock())
            if wait_s:
                message = f"this request may use {num_prompt + most_output} tokens, more than the key's tokens per minute leave now"
                raise self.admission.refusal("key_tokens", message, wait_s)
        self._num_prompt, self._reserved = num_prompt, num_prompt + most_output

    def heard(self, index: int, num_tokens: int) -> None:
        """New tokens of choice `index`."""
        stream, now_s = self._streams[index], self.admission.clock()
        first = stream.first_s is None
        self.admission.observer.heard(num_tokens, now_s - (stream.entered_s if first else stream.last_s), first=first)
        self.admission.first_token.heard(stream, num_tokens, now_s)

    def ended(self, index: int) -> None:
        """Choice `index` has come to its own end, and holds no place any more."""
        stream = self._streams[index]
        self.admission.first_token.ended(stream)
        self.admission.streams.pop(id(stream), None)

    def leave(self) -> None:
        """The request is over, however it ended; may be said twice."""
        for stream in self._streams:
            self.admission.streams.pop(id(stream), None)
        if self._reading is not None:
            self.admission.backlog.remove(self._reading)
        if self.allowance is not None and self._counted:
            self._counted = False
            self.allowance.num_streams -= 1
            self.allowance.settle_tokens(self._reserved, self._num_prompt + sum(stream.num_tokens for stream in self._streams))

    def _refusal(self, reason: Reason, message: str, retry_after_s: float) -> Refusal:
        """A refusal of this request before it is anyone's visit: it says itself what the key has left."""
        refusal = self.admission.refusal(reason, message, retry_after_s)
        refusal.headers |= self.headers()
        return refusal
