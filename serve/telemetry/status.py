"""What the live page shows, as plain data: one gateway's report, and all reports, replicas, machines and costs put together.

Promise: pure functions from what the processes say to one JSON document; what is not known is None, never made up. No prompt, no text,
no key is in it. It stays small however much goes on: at most `MAX_STREAMS` streams and `MAX_MOVES` moves are listed, and all counted.
Price: a pass over the journal per report.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from serve.moves.journal import Stay

__all__ = ["MAX_MOVES", "MAX_STREAMS", "SHOWN_S", "gateway_report", "status"]

MAX_STREAMS = 40
MAX_MOVES = 30
SHOWN_S = 120.0
"""A stream that moved is still listed this long after its end: the page's timelines are as long."""
MOVES = ("kv", "recompute", "crash")
"""Ways to go on elsewhere that a client could have noticed as a pause; a bounce (given back unseen) is none."""
_GONE = ("moved", "lost")


def gateway_report(
    name: str, node_id: str, stays: Iterable[Stay], *, counters: Mapping[str, float], moves: Mapping[str, int], now_s: float
) -> dict[str, Any]:
    """One gateway's part: its streams, its latest moves, its totals. `moves` counts streams that went on elsewhere, by how."""
    by_stream: dict[str, list[Stay]] = defaultdict(list)
    for stay in stays:
        by_stream[stay.stream].append(stay)
    listed = [(_state(own[-1], now_s), own) for own in by_stream.values()]
    live = [(state, own) for state, own in listed if state != "over"]
    recent = [(state, own) for state, own in listed if state == "over" and len(own) > 1 and now_s - (own[-1].end_s or now_s) < SHOWN_S]
    live.sort(key=lambda each: (len(each[1]), each[1][0].start_s), reverse=True)
    shown = [*live, *sorted(recent, key=lambda each: each[1][-1].end_s or 0.0, reverse=True)][:MAX_STREAMS]
    return {
        "name": name,
        "node": node_id,
        **counters,
        "live": len(live),
        "paused": sum(state == "paused" for state, _ in live),
        "moves": {how: moves.get(how, 0) for how in MOVES},
        "streams": [_stream(name, state, own) for state, own in shown],
        "moved": _moved(name, by_stream.values()),
        "loads": _loads(own[-1] for state, own in live if state == "running"),
    }


def _state(last: Stay, now_s: float) -> str:
    if last.end_s is None:
        return "running"
    return "paused" if last.end in _GONE and now_s - last.end_s < SHOWN_S else "over"


def _stream(gateway: str, state: str, stays: Sequence[Stay]) -> dict[str, Any]:
    return {
        "id": stays[0].stream,
        "gateway": gateway,
        "state": state if state != "over" else stays[-1].end,
        "start_s": stays[0].start_s,
        "tokens": sum(stay.num_tokens for stay in stays),
        "stays": [
            {"replica": stay.replica_id, "node": stay.node_id, "deployment": stay.deployment, "how": stay.how,
             "start_s": stay.start_s, "first_s": stay.first_s, "last_s": stay.last_s, "end_s": stay.end_s, "tokens": stay.num_tokens}
            for stay in stays
        ],
    }  # fmt: skip


def _moved(gateway: str, streams: Iterable[Sequence[Stay]]) -> list[dict[str, Any]]:
    pairs = [pair for stays in streams for pair in pairwise(stays) if pair[1].how in MOVES]
    pairs.sort(key=lambda pair: pair[1].start_s, reverse=True)
    return [
        {
            "at_s": after.start_s,
            "gateway": gateway,
            "stream": after.stream,
            "how": after.how,
            "why": after.why or after.reason,
            "from": before.replica_id,
            "from_node": before.node_id,
            "to": after.replica_id,
            "to_node": after.node_id,
            "gap_s": after.gap_s,
            "bytes": after.num_bytes,
            "tokens_computed_again": after.num_computed_again,
        }
        for before, after in pairs[:MAX_MOVES]
    ]


def _loads(stays: Iterable[Stay]) -> dict[str, int]:
    loads: dict[str, int] = defaultdict(int)
    for stay in stays:
        loads[stay.replica_id] += 1
    return dict(loads)


def status(
    *,
    asked: str,
    model: str,
    reports: Sequence[Mapping[str, Any]],
    replicas: Sequence[Mapping[str, Any]],
    deployments: Mapping[str, str],
    slots: int,
    drains: Mapping[str, float],
    books: Mapping[str, Any] | None,
    now_s: float,
) -> dict[str, Any]:
    """The whole document, as the gateway `asked` gives it.

    `replicas` are the replicas' own stats, `deployments` the deployment of those that Serve routes to, `slots` the streams that
    one runs at once, `drains` the draining nodes with their deadlines (unix seconds, `inf` for none), `books` what the books say of
    machines, costs and decisions (None: they do not answer).
    """
    reports = sorted(reports, key=lambda report: str(report["name"]))
    nodes = _nodes(books["machines"] if books else [], replicas, reports, drains)
    markets = {node["id"]: node["market"] for node in nodes}
    return {
        "now_s": now_s,
        "gateway": asked,
        "model": model,
        "gateways": [{key: report.get(key) for key in ("name", "node", "live", "waiting", "tokens", "since_s")} for report in reports],
        "totals": _totals(reports),
        "replicas": [
            _replica(each, reports, drains, markets) | {"deployment": deployments.get(str(each["replica_id"])), "slots": slots}
            for each in _by_node(replicas)
        ],
        "nodes": nodes,
        "streams": _latest((row for report in reports for row in report["streams"]), "start_s", MAX_STREAMS),
        "moves": _latest((row for report in reports for row in report["moved"]), "at_s", MAX_MOVES),
        "costs": books["costs"] if books else None,
        "decisions": books["decisions"] if books else [],
    }


def _totals(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sums = {
        name: sum(report.get(name) or 0 for report in reports) for name in ("live", "paused", "waiting", "tokens", "requests", "refused")
    }
    return sums | {"moves": {how: sum(report["moves"][how] for report in reports) for how in MOVES}}


def _by_node(replicas: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(replicas, key=lambda each: (str(each["node_id"]), str(each["replica_id"])))


def _replica(
    stats: Mapping[str, Any],
    reports: Sequence[Mapping[str, Any]],
    drains: Mapping[str, float],
    markets: Mapping[str, str | None],
) -> dict[str, Any]:
    name, node = str(stats["replica_id"]), str(stats["node_id"])
    total, free = stats.get("total_blocks"), stats.get("free_blocks", 0) + stats.get("cached_blocks", 0)
    return {
        "name": name,
        "node": node,
        "market": markets.get(node),
        "streams": sum(report["loads"].get(name, 0) for report in reports),
        "running": stats.get("running"),
        "waiting": stats.get("waiting"),
        "kv_used": (total - free) / total if total else None,
        "draining": node in drains or bool(stats.get("draining")),
    }


def _nodes(
    machines: Sequence[Mapping[str, Any]],
    replicas: Sequence[Mapping[str, Any]],
    reports: Sequence[Mapping[str, Any]],
    drains: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Every machine that the books know, and those that only replicas speak of."""
    known = {str(machine["id"]): dict(machine) for machine in machines}
    for each in replicas:
        bare = {"id": str(each["node_id"]), "market": each.get("market") or None, "type": None, "zone": None, "price_per_hour": None}
        known.setdefault(str(each["node_id"]), {**bare, "since_s": None, "address": None, "head": False})
    homes = {str(report["node"]) for report in reports}
    for name, node in known.items():
        deadline = drains.get(name)
        node["draining"] = deadline is not None
        node["deadline_s"] = deadline if deadline is not None and math.isfinite(deadline) else None
        node["replicas"] = sum(str(each["node_id"]) == name for each in replicas)
        node["gateway"] = name in homes
    return sorted(known.values(), key=lambda node: (node["market"] == "spot", not node["head"], node["since_s"] or 0.0, node["id"]))


def _latest(rows: Iterable[dict[str, Any]], key: str, most: int) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row[key], reverse=True)[:most]
