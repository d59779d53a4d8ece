"""When Serve stops a replica, who has to know knows first. (tests/serve/test_rolling.py has a real one stopped under its streams.)"""

import asyncio
from types import SimpleNamespace

import pytest
import ray

from serve.stopping import on_stop


def test_the_callback_comes_once_before_serve_waits_for_requests_and_with_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[object] = []

    async def perform_graceful_shutdown() -> None:
        happened.append("drained")

    config = SimpleNamespace(graceful_shutdown_timeout_s=20)
    replica = SimpleNamespace(perform_graceful_shutdown=perform_graceful_shutdown, _deployment_config=config)
    worker = SimpleNamespace(actor_id="me", actors={"me": SimpleNamespace(_replica_impl=replica)})
    monkeypatch.setattr(ray._private.worker, "global_worker", worker)
    on_stop(happened.append)

    async def stopped_twice() -> None:
        await replica.perform_graceful_shutdown()
        await replica.perform_graceful_shutdown()  # the controller restarted, and asks again

    asyncio.run(stopped_twice())
    assert happened == [20, "drained", "drained"]
