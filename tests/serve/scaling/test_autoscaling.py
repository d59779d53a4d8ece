"""The thread in Serve's controller: what it answers, and a service that really scales."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray.serve

from cluster.announcement import lead
from cluster.autoscale import AutoscaleSettings
from cluster.bulletin import Bulletin
from cluster.machines import Fleet
from cluster.market import ON_DEMAND, SPOT
from cluster.placement import PlacementSettings
from serve.app import APP, free_port, running
from serve.config import ServeConfig
from serve.engine.config import EngineConfig
from serve.scaling import autoscaling
from serve.scaling.load import GATEWAYS
from serve.scaling.policy_settings import policy_settings
from serve.scaling.steward import Decision, Sight, Steward

PATIENCE_S = 60.0


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)  # Serve has no event for it


def test_a_report_of_someone_who_waits_is_answered_with_a_replica_and_a_reason(ray_session: None) -> None:
    bulletin, settings = Bulletin(), policy_settings(ServeConfig(model="m", autoscaling=True))
    thread = autoscaling.Autoscaling("waiting", settings)
    try:
        assert thread.replicas(SPOT, 0) == 0, "before anyone has reported nothing changes"
        waits = {"streams": 1, "waiting": 1, "waiting_tokens": 9.0, "mean_tokens": 9.0, "tokens": 0, "asked": 9.0, "refused": 0}
        bulletin.post(GATEWAYS, "test", waits)
        until(lambda: thread.replicas(SPOT, 0) == 1)
        (decision,) = autoscaling.decisions("waiting")
        assert decision["replicas"]["spot"] == 1
        assert "1 waiting" in decision["reasons"][0]
    finally:
        thread.close()
        bulletin.remove(GATEWAYS, "test")


def test_a_service_that_has_replicas_keeps_them_when_its_thread_begins_anew(ray_session: None) -> None:
    bulletin, settings = Bulletin(), policy_settings(ServeConfig(model="m", autoscaling=True))
    thread = autoscaling.Autoscaling("begun", settings)
    try:
        thread.replicas(SPOT, 3)
        quiet = {"streams": 0, "waiting": 0, "waiting_tokens": 0.0, "mean_tokens": 9.0, "tokens": 0, "asked": 0.0, "refused": 0}
        bulletin.post(GATEWAYS, "test", quiet)
        until(lambda: bool(autoscaling.decisions("begun")))
        first = autoscaling.decisions("begun")[0]
        assert first["replicas"]["spot"] == 3, "one quiet second is no reason to give machines back"
        assert "kept for" in first["reasons"][0]
    finally:
        thread.close()
        bulletin.remove(GATEWAYS, "test")


def test_a_drain_that_fails_holds_up_neither_the_counts_nor_another_drain_and_is_asked_for_again(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    told: list[str] = []

    def drain(node: str, reason: str, deadline_s: float | None, *, gcs_address: str) -> None:
        asked.append(node)
        if node == "gone":
            raise ValueError("gone: no living Ray node has this id\nand more")

    def decide(mine: Steward, sight: Sight) -> Decision:
        return Decision(sight.now_s, {SPOT: 1, ON_DEMAND: 0}, (), ("gone", "here"), ("less to do",), sight.load, Fleet())

    monkeypatch.setattr(autoscaling, "drain", drain)
    monkeypatch.setattr(autoscaling, "INTERVAL_S", 0.05)
    monkeypatch.setattr(autoscaling._log, "warning", lambda text, *values: told.append(text % values))
    monkeypatch.setattr(Steward, "decide", decide)
    bulletin, settings = Bulletin(), policy_settings(ServeConfig(model="m", autoscaling=True))
    quiet = {"streams": 0, "waiting": 0, "waiting_tokens": 0.0, "mean_tokens": 9.0, "tokens": 0, "asked": 0.0, "refused": 0}
    bulletin.post(GATEWAYS, "test", quiet)
    thread = autoscaling.Autoscaling("draining", settings)
    try:
        until(lambda: thread.replicas(SPOT, 3) == 1 and len(asked) >= 4)
        assert asked[:4] == ["gone", "here", "gone", "here"]
        assert "not given back for now: gone: ValueError: gone: no living Ray node has this id" in told
        assert lead(bulletin) == settings["placement"]["drain_lead_s"], "it says that it has machines with notice replaced"
    finally:
        thread.close()
        bulletin.remove(GATEWAYS, "test")


def test_prices_are_looked_at_now_and_then_and_stay_where_nobody_answers(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[dict[str, float] | Exception] = [{"m": 0.1}, {}, RuntimeError("the market is closed"), {"m": 0.2}]
    looked: list[Mapping[str, float]] = []

    def prices_now(told: Mapping[str, Any]) -> dict[str, float]:
        looked.append(thread._prices)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(autoscaling, "prices_now", prices_now)
    monkeypatch.setattr(autoscaling, "PRICES_S", 0.05)
    settings = policy_settings(ServeConfig(model="m", autoscaling=True)) | {"region": "north"}
    thread = autoscaling.Autoscaling("priced", settings)
    try:
        until(lambda: len(looked) >= 5)
        assert looked[:5] == [{}, {"m": 0.1}, {"m": 0.1}, {"m": 0.1}, {"m": 0.2}]
    finally:
        thread.close()


@pytest.mark.slow  # most of a minute; tests/chaos/test_fleet.py, with machines, is longer still
def test_a_service_scales_from_nothing_with_its_load_and_back(ray_session: None, tiny_model_dir: Path) -> None:
    config = ServeConfig(
        model=str(tiny_model_dir), name="tern", port=free_port(), spot_replicas=0, on_demand_replicas=0, cpus_per_replica=1,
        engine=EngineConfig(num_threads=1), autoscaling=True, placement=PlacementSettings(cold_start_s=20.0),
        autoscale=AutoscaleSettings(replica_tokens_per_s=1e6, max_replicas=1, scale_down_after_s=2.0),
    )  # fmt: skip

    def counts() -> dict[str, int]:
        deployments = ray.serve.status().applications[APP].deployments
        return {name: sum(deployments[name].replica_states.values()) for name in ("spot", "on_demand")}

    with running(config) as url:
        assert counts() == {"spot": 0, "on_demand": 0}
        assert httpx.get(url.removesuffix("/v1") + "/health").json() == {"status": "ok"}
        body = {"model": "tern", "prompt": "def", "max_tokens": 8, "ignore_eos": True}
        answer = httpx.post(f"{url}/completions", json=body, timeout=PATIENCE_S).json()
        assert answer["usage"]["completion_tokens"] == 8, "who comes to an empty house waits for the first replica"
        until(lambda: counts() == {"spot": 0, "on_demand": 0})
        told = autoscaling.decisions(APP)
    assert told[-1]["replicas"] == {"spot": 0, "on-demand": 0}
    assert any(decision["replicas"]["spot"] == 1 for decision in told)
    assert all(decision["reasons"] for decision in told)


def test_what_the_policy_is_told_makes_its_steward() -> None:
    made = autoscaling.steward(policy_settings(ServeConfig(model="m", autoscaling=True, placement=PlacementSettings(min_on_demand=2))))
    assert (made.placement.min_on_demand, made.target.num_replicas) == (2, 0)
