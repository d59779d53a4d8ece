"""What the driver sees and says while workers train: a progress bar over all groups of workers, and the sign to grow.

Promise: the bar follows worker 0's news within half a second; the group is told to stop for more workers when that is worth it, by the
figures that the news bring. Price: a thread, a look at the cluster each second.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ray.experimental import internal_kv

from cluster.console import progress, say
from train.elastic.size import worth_growing
from train.elastic.worker import GROW, NAMESPACE, UP
from train.job import Ended, Job

__all__ = ["Figures", "Group", "counted", "news_of", "watched"]

_POLL_S = 0.5
_SLOW_START_S = 60.0
_FEWEST = 5  # steps of a group before its pace is judged


@dataclass(slots=True)
class Figures:
    """What a job has measured of itself, over all its groups of workers."""

    step_s: dict[int, float] = field(default_factory=dict)
    """Median seconds of a step, by number of workers."""
    save_s: dict[int, float] = field(default_factory=dict)
    """Seconds of a checkpoint, by number of workers."""
    restart_s: float = 0.0
    """The longest time from one group's end (or the beginning) until the next was ready for its first step."""

    def note(self, ended: Ended, num_workers: int) -> None:
        """What a group has measured."""
        self.step_s[num_workers] = ended.step_s
        if ended.save_s is not None:
            self.save_s[num_workers] = ended.save_s

    def expected_save_s(self, num_workers: int) -> float | None:
        """Seconds of a checkpoint of so many workers: as measured, or as measured with others, each of whom wrote so much less or more.

        >>> Figures(save_s={2: 3.0, 3: 1.5}).expected_save_s(1)
        6.0
        """
        if num_workers in self.save_s:
            return self.save_s[num_workers]
        return max((seconds * known / num_workers for known, seconds in self.save_s.items()), default=None)


@dataclass(slots=True)
class Group:
    """A group of workers as the driver follows it."""

    job: Job
    key: bytes
    num_workers: int
    start: int
    """The step that it goes on from."""
    room: Callable[[], int]
    """How many workers there would be room for now."""
    figures: Figures
    _seconds: deque[float] = field(init=False, default_factory=lambda: deque(maxlen=32))
    _asked: bool = field(init=False, default=False)
    _began: float = field(init=False, default_factory=time.time)

    def follow(self, stop: threading.Event) -> None:
        """Until `stop`: wait for the first step, then show each."""
        goes_on = f", going on after step {self.start}" if self.start else ""
        say(f"{self.job.label}: starting {counted(self.num_workers)}{goes_on}")
        if not self._wait(stop):
            return
        seen, told = self.start, 0
        with progress(self.job.label, self.job.recipe.steps - seen, "steps") as advance:
            while True:
                last = stop.wait(_POLL_S)
                news = news_of(self.key)
                for undone in news["undone"][told:] if news else ():
                    say(f"{self.job.label}: {undone}")
                    told += 1
                if news and news["step"] > seen:
                    advance(news["step"] - seen, news["note"])
                    seen = news["step"]
                    self._seconds.append(news["seconds"])
                if last:
                    return
                self._consider_growth(self.job.recipe.steps - seen)

    def _wait(self, stop: threading.Event) -> bool:
        """Whether the first step came before the end."""
        waited_s = 0.0
        while news_of(self.key) is None:
            if stop.wait(_POLL_S):
                return False
            waited_s += _POLL_S
            if waited_s == _SLOW_START_S:
                say(f"{self.job.label}: still waiting for {counted(self.num_workers)}; is the cluster busy?")
        return True

    def _consider_growth(self, left: int) -> None:
        job = self.job
        if self._asked or job.growth == "never" or self.num_workers == job.recipe.num_workers or len(self._seconds) < _FEWEST:
            return
        if (room := self.room()) <= self.num_workers:
            return
        paces = {**self.figures.step_s, self.num_workers: median(self._seconds)}
        worth, reason = worth_growing(left, self.num_workers, room, paces, self._restart_s())
        if worth or job.growth == "always":
            say(f"{job.label}: {reason}")
            internal_kv._internal_kv_put(self.key + GROW, b"1", overwrite=True, namespace=NAMESPACE)
            self._asked = True

    def _restart_s(self) -> float:
        """The longest start so far, this group's own included."""
        up = news_of(self.key + UP)
        return max(self.figures.restart_s, up["at_s"] - self._began if up else 0.0)


@contextmanager
def watched(group: Group) -> Iterator[None]:
    """Follow the group in a thread while the block runs."""
    for key in (group.key, group.key + UP, group.key + GROW):
        internal_kv._internal_kv_del(key, namespace=NAMESPACE)
    stop = threading.Event()
    thread = threading.Thread(target=group.follow, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        group.figures.restart_s = group._restart_s()


def counted(num_workers: int) -> str:
    """A number of workers in words."""
    return f"{num_workers} worker" if num_workers == 1 else f"{num_workers} workers"


def news_of(key: bytes) -> dict[str, Any] | None:
    """The last word under `key`."""
    raw = internal_kv._internal_kv_get(key, namespace=NAMESPACE)
    return dict(json.loads(raw)) if raw else None
