"""What the live page is told, from journals, replicas and books."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.moves.journal import Stay
from serve.telemetry.status import MAX_MOVES, MAX_STREAMS, MOVES, SHOWN_S, gateway_report, status

NOW = 1000.0


def stay(stream: str = "a", replica: str = "r1", start: float = 900.0, **more: Any) -> Stay:
    made = Stay(stream, 1, "spot", replica, f"node-{replica}", "load 0 of 8", start)
    for name, value in {"first_s": start + 0.1, "last_s": start + 5, "num_tokens": 50, **more}.items():
        setattr(made, name, value)
    return made


def moved(stream: str = "a", how: str = "kv") -> list[Stay]:
    left = {"kv": "moved", "recompute": "moved", "crash": "lost"}[how]
    return [
        stay(stream, "r1", 900.0, end_s=906.0, end=left, last_s=905.0),
        stay(
            stream,
            "r2",
            906.0,
            how=how,
            why="KV in time",
            first_s=906.5,
            last_s=999.0,
            num_bytes=4096,
            num_computed=3,
            num_computed_again=3,
            gap_s=1.5,
        ),
    ]


def report(*stays: Stay, name: str = "g1", **more: Any) -> dict[str, Any]:
    counters = {"tokens": 100.0, "waiting": 1.0, "refused": 0.0, "requests": 3.0, "since_s": 800.0}
    return gateway_report(name, "node-g", stays, counters=counters, moves=more.get("moves", {}), now_s=NOW)


def document(reports: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    given_ = {"asked": "g1", "model": "tern", "replicas": [], "deployments": {}, "slots": 8, "drains": {}, "books": None, "now_s": NOW}
    return status(reports=reports, **{**given_, **more})


def test_a_stream_that_runs_one_between_machines_and_one_that_is_over():
    made = report(
        stay("runs"), stay("waits", end_s=999.0, end="lost"), stay("over", end_s=990.0, end="done"), stay("gone", end_s=500.0, end="lost")
    )
    assert (made["live"], made["paused"]) == (2, 1)
    assert {row["id"]: row["state"] for row in made["streams"]} == {"runs": "running", "waits": "paused"}
    assert made["loads"] == {"r1": 1}


@pytest.mark.parametrize("how", MOVES)
def test_a_move_is_told_with_both_ends_and_its_pause(how):
    (move,) = report(*moved(how=how))["moved"]
    assert (move["how"], move["from"], move["to"], move["gap_s"]) == (how, "r1", "r2", pytest.approx(1.5))
    assert (move["why"], move["bytes"], move["tokens_computed_again"]) == ("KV in time", 4096, 3)


def test_a_bounce_is_no_move():
    bounced = [stay("a", "r1", 900.0, end_s=900.1, end="moved", num_tokens=0), stay("a", "r2", 900.1, how="bounce")]
    assert report(*bounced)["moved"] == []


def test_a_stream_that_moved_is_listed_a_while_after_its_end():
    first, second = moved()
    second.end_s, second.end = NOW - SHOWN_S + 1, "done"
    assert [row["state"] for row in report(first, second)["streams"]] == ["done"]
    second.end_s = NOW - SHOWN_S - 1
    assert report(first, second)["streams"] == []


@given(st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["r1", "r2", "r3"]), st.sampled_from(["done", "moved", "lost", None]))))
def test_however_much_goes_on_the_report_stays_small_and_counts_all(visits):
    stays = [
        stay(f"s{name}", replica, 900.0 + n / 10, end=end, end_s=None if end is None else 999.0)
        for n, (name, replica, end) in enumerate(visits)
    ]
    made = report(*stays)
    assert len(made["streams"]) <= MAX_STREAMS
    assert len(made["moved"]) <= MAX_MOVES
    last = {each.stream: each for each in stays}
    assert made["live"] == sum(each.end != "done" for each in last.values())
    assert sum(made["loads"].values()) == sum(each.end is None for each in last.values())
    json.dumps(document([made]), allow_nan=False)


def test_all_gateways_are_put_together_and_the_asked_one_is_named():
    both = document([report(stay("b"), name="g2", moves={"kv": 2}), report(*moved("a"), moves={"kv": 1, "crash": 4})])
    assert both["gateway"] == "g1"
    assert [(gateway["name"], gateway["live"]) for gateway in both["gateways"]] == [("g1", 1), ("g2", 1)]
    assert both["totals"]["live"] == 2
    assert both["totals"]["tokens"] == 200
    assert both["totals"]["moves"] == {"kv": 3, "recompute": 0, "crash": 4}
    assert {row["gateway"] for row in both["streams"]} == {"g1", "g2"}


REPLICA = {"replica_id": "r1", "node_id": "n1", "running": 2, "waiting": 1, "total_blocks": 10, "free_blocks": 4, "cached_blocks": 1}
MACHINE = {"id": "n1", "market": "spot", "type": "m7i.4xlarge", "zone": "us-west-2a", "price_per_hour": 0.2, "since_s": 1.0, "address": "x",
           "head": False}  # fmt: skip


def test_a_replica_is_shown_on_its_machine_with_its_load():
    books = {"machines": [MACHINE], "costs": {"dollars": 1.0}, "decisions": [{"at_s": 1.0, "what": "2 spot", "reasons": []}]}
    made = document([report(stay("a", "r1"), stay("b", "r1"))], replicas=[REPLICA], deployments={"r1": "spot"}, books=books)
    (replica,) = made["replicas"]
    assert (replica["streams"], replica["slots"], replica["kv_used"], replica["market"], replica["deployment"]) == (
        2,
        8,
        0.5,
        "spot",
        "spot",
    )
    (node,) = made["nodes"]
    assert (node["replicas"], node["price_per_hour"], node["draining"]) == (1, 0.2, False)
    assert made["costs"] == {"dollars": 1.0}
    assert len(made["decisions"]) == 1


@pytest.mark.parametrize(("deadline", "shown"), [(1012.0, 1012.0), (math.inf, None)])
def test_a_draining_machine_and_its_replicas_are_marked(deadline, shown):
    made = document([report()], replicas=[REPLICA], books={"machines": [MACHINE], "costs": {}, "decisions": []}, drains={"n1": deadline})
    assert made["replicas"][0]["draining"]
    assert (made["nodes"][0]["draining"], made["nodes"][0]["deadline_s"]) == (True, shown)
    json.dumps(made, allow_nan=False)


def test_without_books_the_machines_are_those_that_replicas_speak_of():
    made = document([report()], replicas=[REPLICA])
    assert [(node["id"], node["type"]) for node in made["nodes"]] == [("n1", None)]
    assert made["costs"] is None
