"""Patience with storage: what fails because a place does not answer is tried again, a few times, ever later.

Promise: only an error that says nothing of what is stored (`is_unavailable`) is waited for, and the last one is raised. What is
wrapped must be harmless to do twice. Price: a quarter of a minute before a place that is down is given up. Why, since S3's client
tries again by itself: it does not in the middle of an answer, and a 503 whose body is longer than the few bytes that were asked for
counts as one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import islice
from typing import ParamSpec, TypeVar

from cluster.storage import is_unavailable

__all__ = ["patiently", "patiently_given"]

_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)

P = ParamSpec("P")
T = TypeVar("T")


def patiently(function: Callable[P, T]) -> Callable[P, T]:
    """The function, called again while storage does not answer."""

    @wraps(function)
    def insisting(*args: P.args, **settings: P.kwargs) -> T:
        for wait_s in _WAITS_S:
            try:
                return function(*args, **settings)
            except OSError as error:
                if not is_unavailable(error):
                    raise
            time.sleep(wait_s)
        return function(*args, **settings)

    return insisting


def patiently_given(begin: Callable[[], Iterator[T]]) -> Iterator[T]:
    """What `begin()` gives, the same each time that it is called: begun again while storage does not answer, each item given once."""
    given = 0
    for wait_s in (*_WAITS_S, None):
        try:
            for item in islice(begin(), given, None):
                given += 1
                yield item
            return
        except OSError as error:
            if wait_s is None or not is_unavailable(error):
                raise
        time.sleep(wait_s)
