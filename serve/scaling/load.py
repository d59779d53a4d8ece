"""How much work there is: what each gateway reports, and what all of their reports together say.

Promise: a report holds totals where totals do (one that is lost or late loses nothing), and `Window.load` turns the reports of all
gateways over the last seconds into the `Load` that the policies read: tokens asked for a second, streams, and how many wait for their
first token. What was asked for is what was served and what is still owed, by conservation; requests that were refused for want of
capacity count too. A gateway sees every stream, in an engine's queue or with no replica yet.
Price: a pass over the live streams per second; nothing per token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.autoscale import Load
from serve.limits.admission import Admission

__all__ = ["GATEWAYS", "REPLICAS", "Window", "report"]

GATEWAYS = "gateway"
"""The topic on the bulletin of what gateways report."""
REPLICAS = "replica"
"""And of what replicas say: {"node_id", "deployment", "leaving"}."""
WINDOW_S = 30.0
"""Rates are taken over so many seconds: long enough to count, short enough to follow a rise."""


def report(admission: Admission, num_tokens: float, num_refused: float) -> dict[str, Any]:
    """What one gateway has at this moment; `num_tokens` it has sent and `num_refused` requests it has turned away, since it started.

    `asked` is a total that grows as requests arrive: tokens sent, and those that live streams are expected to need yet. Embeddings count as
    streams of one token that wait: they bring a replica where there is none, and keep it.
    """
    live, share, now_s = list(admission.streams.values()), admission.first_token.share, admission.clock()
    embeddings = len(admission.backlog)
    waiting = [stream for stream in live if stream.first_s is None]
    return {
        "streams": len(live) + embeddings,
        "waiting": len(waiting) + embeddings,
        "waiting_tokens": share * sum(stream.max_tokens for stream in waiting) + embeddings,
        "longest_wait_s": max((now_s - stream.entered_s for stream in waiting), default=0.0),
        "mean_tokens": share * sum(stream.max_tokens for stream in live) / len(live) if live else 0.0,
        "tokens": num_tokens,
        "asked": num_tokens + sum(max(0.0, share * stream.max_tokens - stream.num_tokens) for stream in live),
        "refused": num_refused,
    }


@dataclass(slots=True)
class Window:
    """The gateways' reports of the last seconds, by gateway."""

    seconds: float = WINDOW_S
    reports: dict[str, deque[Mapping[str, Any]]] = field(default_factory=dict)

    def add(self, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in the newest report of each gateway (with its `time_s`); one that reports no more is forgotten."""
        self.reports = {name: self.reports.get(name, deque()) for name in reports}
        for name, new in reports.items():
            kept = self.reports[name]
            if not kept or new["time_s"] > kept[-1]["time_s"]:
                kept.append(new)
            while len(kept) > 2 and kept[1]["time_s"] <= kept[-1]["time_s"] - self.seconds:
                kept.popleft()

    def load(self) -> Load:
        """What all gateways see together; nothing before anyone has reported."""
        spans = [(kept[0], kept[-1]) for kept in self.reports.values()]
        tokens_per_s = sum(max(0.0, _per_s(a, b, "asked")) + _per_s(a, b, "refused") * b["mean_tokens"] for a, b in spans)
        streams, waiting, tokens = (sum(b[name] for _, b in spans) for name in ("streams", "waiting", "waiting_tokens"))
        return Load(tokens_per_s=tokens_per_s, streams=streams - waiting, queued=waiting, queued_tokens=tokens)


def _per_s(before: Mapping[str, Any], now: Mapping[str, Any], name: str) -> float:
    """How fast a total has grown."""
    seconds = now["time_s"] - before["time_s"]
    return float((now[name] - before[name]) / seconds) if seconds > 0 else 0.0
