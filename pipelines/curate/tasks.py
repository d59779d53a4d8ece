"""One function over many items as Ray tasks that may die: with their worker, with their node, as often as they like.

Promise: results in the order of the items, each from a run of its task that finished; a task lost with its process or node is
run again. So a task must write the same files to the same names each time. Price: the driver holds the results, so they are
to be small; a few tasks for each CPU are under way at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from cluster.runtime import num_cpus_available

__all__ = ["in_tasks"]

_RETRIES = 100  # a task that kills its process by itself must end some day
_AHEAD = 4


def in_tasks(function: Callable[..., Any], items: Sequence[Any], *shared: Any) -> list[Any]:
    """`function(item, *shared)` for each item. Ray must be attached."""
    task = ray.remote(num_cpus=1, max_retries=_RETRIES)(function)
    window = _AHEAD * num_cpus_available()
    results: list[Any] = [None] * len(items)
    running: dict[Any, int] = {}
    for number, item in enumerate(items):
        if len(running) >= window:
            _harvest(running, results)
        running[task.remote(item, *shared)] = number
    while running:
        _harvest(running, results)
    return results


def _harvest(running: dict[Any, int], results: list[Any]) -> None:
    """Wait for at least one of the running tasks."""
    done, _ = ray.wait(list(running), num_returns=1)
    for reference in done:
        results[running.pop(reference)] = ray.get(reference)
