"""What a key may still use: token buckets for requests and tokens per minute, and a count of its requests at once.

Promise: over any stretch of T seconds a key gets at most `limit + limit x T / 60` requests, and as many tokens, at all gateways together;
tokens are set aside when a request comes (its prompt and the most it may emit) and what it left unused is given back at its end. A request
that asks for more than a whole minute's tokens waits for a full bucket, and what it used beyond is owed. Price: arithmetic; each gateway
has an even share, and a key whose requests all meet one gateway is held to that (serve/limits/keys.py refuses a limit with too little for
each). Source: the token bucket (Turner 1986), as OpenAI's own limits behave: they count `max_tokens` too, so name a small one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from serve.limits.keys import ApiKey

__all__ = ["Allowance", "Bucket", "duration"]

MINUTE_S = 60.0


@dataclass(slots=True)
class Bucket:
    """Fills at `per_minute`, holds at most a minute's worth, begins full.

    >>> bucket = Bucket(60.0)
    >>> bucket.take(59.0, now_s=0.0), bucket.take(2.0, now_s=0.0), bucket.take(2.0, now_s=1.0)
    (0.0, 1.0, 0.0)
    """

    per_minute: float
    level: float = field(init=False)
    at_s: float | None = None

    def __post_init__(self) -> None:
        self.level = self.per_minute

    def take(self, amount: float, now_s: float) -> float:
        """Take `amount` and return 0, or take nothing and return the seconds until it will be there."""
        self.fill(now_s)
        if self.level < amount:
            return (amount - self.level) / self.per_minute * MINUTE_S
        self.level -= amount
        return 0.0

    def fill(self, now_s: float) -> None:
        """What has run in since."""
        if self.at_s is not None:
            filled = max(now_s - self.at_s, 0.0) / MINUTE_S * self.per_minute
            self.level = min(self.per_minute, self.level + filled)
        self.at_s = now_s

    @property
    def full_after_s(self) -> float:
        """Seconds until it is full, if nobody takes any more."""
        return (self.per_minute - self.level) / self.per_minute * MINUTE_S

    def give(self, amount: float) -> None:
        """Put back what was not used; a negative amount is a debt."""
        self.level = min(self.per_minute, self.level + amount)


class Allowance:
    """One key's limits at one of `num_gateways` gateways, which share them out evenly, so that together they never exceed them."""

    def __init__(self, key: ApiKey, num_gateways: int = 1) -> None:
        self.key = key
        self.num_streams = 0
        self._max_streams = None if key.max_streams is None else key.max_streams // num_gateways
        self._requests = _bucket(key.requests_per_minute, num_gateways)
        self._tokens = _bucket(key.tokens_per_minute, num_gateways)

    @property
    def is_busy(self) -> bool:
        """Whether it has as many requests at once as it may."""
        return self._max_streams is not None and self.num_streams + 1 > self._max_streams

    def take_request(self, now_s: float) -> float:
        """One request more; the seconds to wait if that is too many a minute, else 0."""
        return self._requests.take(1.0, now_s) if self._requests else 0.0

    def take_tokens(self, most: int, now_s: float) -> float:
        """Set `most` tokens aside, or a whole minute's if that is less; the seconds to wait if they are not there, else 0."""
        return self._tokens.take(min(most, self._tokens.per_minute), now_s) if self._tokens else 0.0

    def settle_tokens(self, most: int, used: int) -> None:
        """A request that set `most` aside is over and has used `used`."""
        if self._tokens:
            self._tokens.give(min(most, self._tokens.per_minute) - used)

    def headers(self, now_s: float) -> dict[str, str]:
        """What is left, as OpenAI's answers say it: of this gateway's share, once what the requests that run may use is set aside."""
        said: dict[str, str] = {}
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                bucket.fill(now_s)
                said[f"x-ratelimit-limit-{what}"] = str(int(bucket.per_minute))
                said[f"x-ratelimit-remaining-{what}"] = str(max(int(bucket.level), 0))
                said[f"x-ratelimit-reset-{what}"] = duration(bucket.full_after_s)
        return said


def duration(seconds: float) -> str:
    """A time as OpenAI's headers write it, and Go.

    >>> duration(0.0), duration(0.02), duration(8.64), duration(360.0)
    ('0s', '20ms', '8.64s', '6m0s')
    """
    minutes, milliseconds = divmod(ceil(round(seconds * 1000, 3)), 60_000)
    if not minutes and 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    return (f"{minutes}m" if minutes else "") + f"{milliseconds / 1000:g}s"


def _bucket(limit: int | None, num_gateways: int) -> Bucket | None:
    return None if limit is None else Bucket(limit / num_gateways)
