"""Serve's question, and who answers it."""

from typing import Any

import pytest
from ray.serve.config import AutoscalingContext

from serve.scaling import autoscaling
from serve.scaling.serve_policy import SpotPolicy


def context(deployment: str, target: int) -> Any:
    made = AutoscalingContext.__new__(AutoscalingContext)
    made.app_name, made.deployment_name, made.target_num_replicas = "app", deployment, target
    return made


class Still:
    """An application's thread that has decided nothing yet, and looks at nothing."""

    def __init__(self, app: str, settings: dict[str, Any]) -> None:
        self.settings, self.closed, self.asked = settings, False, []

    def replicas(self, market: str, now: int) -> int:
        self.asked.append((market, now))
        return now + 1

    def close(self) -> None:
        self.closed = True


def test_two_deployments_share_one_thread_until_the_settings_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoscaling, "Autoscaling", Still)
    monkeypatch.setattr(autoscaling, "_RUNNING", {})
    spot, fixed = SpotPolicy({"a": 1}), SpotPolicy({"a": 1})
    assert (spot(context("spot", 3)), fixed(context("on_demand", 0))) == ((4, {}), (1, {}))
    first = autoscaling._RUNNING["app"]
    assert first.asked == [("spot", 3), ("on-demand", 0)]
    SpotPolicy({"a": 2})(context("spot", 3))
    assert first.closed
    assert autoscaling._RUNNING["app"] is not first
