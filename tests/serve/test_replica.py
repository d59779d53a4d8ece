"""Streams that move between replicas of a real Serve application, with their KV, over Ray, under clients who must not notice."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.serve
from ray.serve._private.constants import SERVE_NAMESPACE

from pipelines.drill_streams import Heard, Question, ask_all, difference
from serve.app import APP, free_port, running
from serve.config import ServeConfig
from serve.engine.config import EngineConfig
from serve.moves import handover

BLOCK = 16
PROMPT = "def add(left, right):\n    return left + right\n" * 8
WARM_TOKENS = 20
STEP_S = 0.01
"""Each step is made this much longer, so that a stream is still there when it is to move."""


def replicas() -> list[str]:
    """Names of the actors that run engines."""
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    return [name for name in names if "#spot#" in name or "#on_demand#" in name]


def within(replica_id: str, what: Callable[..., Any], *args: Any) -> Any:
    """Run something in a replica's process; it is given the deployment's object."""
    actor = ray.get_actor(next(name for name in replicas() if name.endswith(f"#{replica_id}")), namespace=SERVE_NAMESPACE)
    return ray.get(actor.__ray_call__.remote(_within, what, *args), timeout=30)


def _within(_: Any, what: Callable[..., Any], *args: Any) -> Any:
    return what(ray.serve.get_replica_context().servable_object, *args)


def prepare(replica: Any) -> int:
    """Slow steps, and calls that cost nothing, so that KV pays even for a tiny model; the process's id."""
    handover.CALL_S = 0.0
    step = replica._engine.step

    def slow() -> Any:
        time.sleep(STEP_S)
        return step()

    replica._engine.step = slow
    return os.getpid()


def leave(replica: Any, notice_s: float) -> None:
    replica._streams.leave(time.time() + notice_s)


class Service:
    """The application, and what its gateway has written down."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.prepared: dict[str, int] = {}

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = ray.serve.get_app_handle(APP).journal.remote().result(timeout_s=30)
        return rows

    def ask(self, body: dict[str, Any], strike: Callable[[list[dict[str, Any]]], Any] | None = None) -> list[Heard]:
        """One request; once its first choice is in the middle of its answer, `strike` gets the rows of its stays."""
        since = time.time()

        async def scenario() -> list[Heard]:
            asked = asyncio.create_task(ask_all(self.url, [Question("test", body)]))
            while strike is not None and not asked.done():
                rows = [row for row in await asyncio.to_thread(self.rows) if row["start_s"] >= since]
                if rows and rows[-1]["num_tokens"] >= WARM_TOKENS:
                    await asyncio.to_thread(strike, rows)
                    break
                await asyncio.sleep(0.01)
            return (await asked)[0]

        heard = asyncio.run(scenario())
        self.latest = [row for row in self.rows() if row["start_s"] >= since]
        return heard


@pytest.fixture(scope="module")
def service(ray_session: None, tiny_model_dir: Path) -> Iterator[Service]:
    engine = EngineConfig(dtype="float64", num_threads=1, draft="off", block_size=BLOCK)
    config = ServeConfig(
        model=str(tiny_model_dir), name="tern", port=free_port(), spot_replicas=2, on_demand_replicas=1, cpus_per_replica=0.5, engine=engine
    )
    with running(config) as url:
        made = Service(url)
        for name in replicas():
            replica_id = name.split("#")[-1]
            made.prepared[replica_id] = within(replica_id, prepare)
        assert len(made.prepared) == 3
        yield made


BODY = {"model": "tern", "prompt": PROMPT, "max_tokens": 200, "stream": True, "ignore_eos": True, "return_token_ids": True}


def test_streams_move_with_their_kv_twice_and_what_comes_then_is_bounced(service: Service) -> None:
    body = {**BODY, "temperature": 0.9, "seed": 5, "n": 2, "logprobs": 1}
    want = service.ask(body)
    left: list[str] = []

    def both_leave(rows: list[dict[str, Any]]) -> None:
        first = rows[-1]["replica_id"]
        within(first, leave, 60.0)
        left.append(first)
        while not (moved := [row for row in service.rows() if row["start_s"] > rows[-1]["start_s"] and row["num_tokens"] >= 4]):
            time.sleep(0.01)
        within(moved[-1]["replica_id"], leave, 60.0)
        left.append(moved[-1]["replica_id"])

    got = service.ask(body, both_leave)
    assert [difference(a, b) for a, b in zip(want, got, strict=True)] == ["", ""]
    moved = [row for row in service.latest if row["how"] != "new"]
    assert len(moved) >= 2
    assert {row["how"] for row in moved} <= {"kv", "bounce"}
    by_kv = [row for row in moved if row["how"] == "kv"]
    assert all(row["num_computed"] <= BLOCK and row["stages"] >= 2 and row["num_bytes"] > 0 for row in by_kv)
    assert all(row["num_computed_again"] == row["num_computed"] - 1 for row in by_kv)  # all but the latest token was computed before
    assert max(row["gap_s"] for row in by_kv) < 5.0
    assert any(len([row for row in by_kv if row["stream"] == stream]) == 2 for stream in {row["stream"] for row in by_kv})
    for _ in range(3):  # whoever comes now is bounced, unseen, by those who leave
        again = service.ask({**BODY, "temperature": 0, "max_tokens": 5})
        assert again[0].finish_reason == "length"
        assert service.latest[-1]["replica_id"] not in left


def test_a_source_that_dies_when_there_is_no_other_place_is_waited_for(service: Service) -> None:
    """After the moves above one replica is left; Serve replaces it when it dies."""
    body = {**BODY, "temperature": 0.9, "seed": 6}
    want = service.ask(body)

    def leave_and_die(rows: list[dict[str, Any]]) -> None:
        source = rows[-1]["replica_id"]
        within(source, leave, 60.0)
        os.kill(service.prepared[source], signal.SIGKILL)

    got = service.ask(body, leave_and_die)
    assert difference(want[0], got[0]) == ""
    died, last = (row for row in service.latest if row["num_tokens"] > 0)
    assert (died["end"], last["end"], last["how"] in ("crash", "bounce")) == ("lost", "done", True)
    assert last["replica_id"] not in service.prepared
