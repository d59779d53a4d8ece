"""When Serve stops a replica, who has to know knows first. (tests/serve/test_rolling.py has a real one stopped under its streams.)"""

import asyncio
import doctest
import math
import threading
import time
from types import SimpleNamespace

import pytest
import ray

from cluster import metadata
from cluster.preemption import LONGEST_NOTICE_S
from serve.scaling import stopping
from serve.scaling.stopping import GRACE_S, HANDOVER_S, leave_by, leave_on_stop, on_stop


def test_doctests() -> None:
    assert doctest.testmod(stopping).failed == 0


def test_the_grace_outlasts_every_clouds_notice() -> None:
    assert max(LONGEST_NOTICE_S, metadata.GCP_WARNING_S, metadata.FILE_WARNING_S) + HANDOVER_S < GRACE_S


def test_a_replica_whose_machine_will_go_has_as_long_as_the_machine_and_another_need_not_be_waited_for() -> None:
    assert leave_by(1000.0, GRACE_S, 1120.0) == 1120.0, "Serve counts one too many: that is no reason to leave early"
    assert leave_by(1000.0, GRACE_S, 1600.0) == 1000.0 + GRACE_S, "then it is killed"
    assert leave_by(1000.0, GRACE_S, 990.0) == 990.0
    assert leave_by(1000.0, GRACE_S, math.inf) == leave_by(1000.0, GRACE_S, None) == 1000.0 + HANDOVER_S, "scaled down, or given back"
    assert leave_by(1000.0, 5.0, None) == 1005.0


class Stopped:
    """Stands in for Serve's replica object of this process, which is asked to stop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, grace_s: float) -> None:
        self.happened: list[object] = []

        async def perform_graceful_shutdown() -> None:
            self.happened.append("drained")

        config = SimpleNamespace(graceful_shutdown_timeout_s=grace_s)
        self.replica = SimpleNamespace(perform_graceful_shutdown=perform_graceful_shutdown, _deployment_config=config)
        worker = SimpleNamespace(actor_id="me", actors={"me": SimpleNamespace(_replica_impl=self.replica)})
        monkeypatch.setattr(ray._private.worker, "global_worker", worker)


def test_the_callback_comes_once_before_serve_waits_for_requests_and_with_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = Stopped(monkeypatch, 20)
    on_stop(stopped.happened.append)

    async def stopped_twice() -> None:
        await stopped.replica.perform_graceful_shutdown()
        await stopped.replica.perform_graceful_shutdown()  # the controller restarted, and asks again

    asyncio.run(stopped_twice())
    assert stopped.happened == [20, "drained", "drained"]


def test_a_replica_leaves_at_once_and_hears_how_long_it_has_when_its_drain_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "KNOWN_S", 0.05)
    stopped, told = Stopped(monkeypatch, GRACE_S), threading.Event()
    drain_s: float | None = None

    def leave(deadline_s: float) -> None:
        stopped.happened.append(deadline_s)
        if stopped.happened.count("drained"):
            told.set()

    leave_on_stop(leave, lambda: drain_s)
    asyncio.run(stopped.replica.perform_graceful_shutdown())
    now_s = time.time()
    drain_s = now_s + 90.0  # Serve may know of a drain before the replica does
    assert told.wait(10)
    assert stopped.happened == [pytest.approx(now_s + GRACE_S, abs=1.0), "drained", drain_s]
