"""What a key may still use: token buckets for requests and tokens per minute, and a count of its requests at once.

Promise: over any stretch of T seconds a key gets at most `limit + limit x T / 60` requests, and as many tokens; tokens are set aside when a
request comes (its prompt and the most it may emit) and what it left unused is given back at its end. A request that asks for more than
a whole minute's tokens waits for a full bucket, and what it used beyond is owed. Price: arithmetic.
Source: the token bucket (Turner 1986), as OpenAI's own limits behave: they count `max_tokens` too, so name a small one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from serve.keys import ApiKey

__all__ = ["Allowance", "Bucket"]

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
        if self.at_s is not None:
            filled = max(now_s - self.at_s, 0.0) / MINUTE_S * self.per_minute
            self.level = min(self.per_minute, self.level + filled)
        self.at_s = now_s
        if self.level < amount:
            return (amount - self.level) / self.per_minute * MINUTE_S
        self.level -= amount
        return 0.0

    def give(self, amount: float) -> None:
        """Put back what was not used; a negative amount is a debt."""
        self.level = min(self.per_minute, self.level + amount)


class Allowance:
    """One key's limits at one of `num_gateways` gateways, which share them out evenly, so that together they never exceed them."""

    def __init__(self, key: ApiKey, num_gateways: int = 1) -> None:
        self.key = key
        self.num_streams = 0
        self._max_streams = _share(key.max_streams, num_gateways)
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


def _share(limit: int | None, num_gateways: int) -> float | None:
    return None if limit is None else max(1.0, limit / num_gateways)


def _bucket(limit: int | None, num_gateways: int) -> Bucket | None:
    share = _share(limit, num_gateways)
    return None if share is None else Bucket(share)
