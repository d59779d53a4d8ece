"""What Ray Serve's controller calls ten times a second to learn how many replicas a deployment should have.

Promise: an answer without waiting; the deciding is done elsewhere (serve/scaling/autoscaling.py). Serve pickles this module by value, so it
holds nothing: the thread and its memory are reached through their own module. Price: a dictionary look-up.
Source: Ray Serve's class-based `AutoscalingPolicy` (ray/serve/config.py).
"""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

from serve.scaling import autoscaling

__all__ = ["SpotPolicy"]


class SpotPolicy:
    """The policy of one deployment."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Plain data, for Serve keeps it as JSON (serve.app makes it)."""
        self._settings = settings

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and the state that Serve would keep for us: none."""
        wanted = autoscaling.autoscaling(context.app_name or "", self._settings, context.deployment_name, context.target_num_replicas)
        return wanted, {}
