"""A request's move between two engines with its KV, as a source and a destination make it, without the wire."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from benchmarks.kv_transfer import through_a_pickle
from serve.engine.engine import Engine
from serve.engine.request import Request


def carry(source: Engine, destination: Engine, name: str, ticket: str, cuts: Sequence[int] = ()) -> int:
    """Copy the blocks that are missing, cut into several calls at `cuts`; how many arrived."""
    hashes = source.kv_chain(name)
    missing = set(destination.kv_missing(hashes, ticket))
    edges = sorted({0, len(hashes), *(cut for cut in cuts if cut < len(hashes))} | {i for i in missing if i - 1 not in missing})
    arrived = 0
    for first, last in pairwise(edges):
        end = next((i for i in range(first, last) if i not in missing), last)
        if first < end:
            arrived += destination.kv_in(ticket, through_a_pickle(source.kv_out(name, first, end)))
    return arrived


def taken(source: Engine, name: str) -> Request:
    """Stop a request here; how it goes on elsewhere. The source's next step tells of the cancellation, which is nobody's news."""
    request = source.snapshot(name).request()
    source.cancel(name)
    return request
