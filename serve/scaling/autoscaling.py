"""Drives Ray Serve's two deployments, and the nodes asked of Ray, by the spot policies.

Promise: once a second one decision (serve/scaling/steward.py) is made from the gateways' and replicas' reports, the cluster's nodes, their
notices and drains, the launches that the cloud refused, and prices that are at most `PRICES_S` old (as far as AWS can be asked). Serve's
autoscaler reads the replica counts; Ray's autoscaler is asked for machines of the planned node types; a machine that the plan gives back is
drained, so its streams move before it goes. What cannot be observed or done is logged and tried again, each by itself; until the first
decision, counts stay as they are. `decisions` reads the log from anywhere.
Price: two threads in Serve's controller. One such service per cluster: Ray's autoscaler keeps a single standing request.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
from ray.autoscaler.v2.sdk import request_cluster_resources

from cluster.announcement import listen
from cluster.autoscale import AutoscaleSettings, Target
from cluster.bulletin import Bulletin
from cluster.census import census
from cluster.console import error_line
from cluster.machines import NodeType
from cluster.market import MarketKind
from cluster.placement import PlacementSettings
from cluster.preemption import drain
from cluster.settings import parse
from serve.scaling.ground import DEPLOYMENTS, Ground
from serve.scaling.load import GATEWAYS, REPLICAS, Window
from serve.scaling.policy_settings import PRICES_S, prices_now
from serve.scaling.steward import Bundle, Decision, Sight, Steward

__all__ = ["Autoscaling", "autoscaling", "decisions"]

DECISIONS = "decision"
INTERVAL_S = 1.0
FRESH_S = 5.0
"""A report older than this is from a process that is gone, or as good as gone."""
FORSAKEN_S = 30.0
"""Without a question from Serve for so long, the application has been deleted: the thread ends."""
_NUM_LOGGED = 50
_log = logging.getLogger("ray.serve")  # the controller's own log


class Autoscaling:
    """One application's thread in the controller."""

    def __init__(self, app: str, settings: Mapping[str, Any]) -> None:
        """`settings` is what `serve.app` hands to Serve as the policy's arguments."""
        self.settings = settings
        self._app, self._gcs_address = app, ray.get_runtime_context().gcs_address
        self._steward = steward(settings)
        self._wanted: dict[MarketKind, int] = {}
        self._window, self._log = Window(), deque[dict[str, Any]](maxlen=_NUM_LOGGED)
        self._decision: Decision | None = None
        self._told: Decision | None = None  # the latest one that got through
        self._standing: tuple[Bundle, ...] | None = None  # what Ray was last asked for, if that got through
        self._asked_s, self._closed = time.monotonic(), threading.Event()
        self._prices: Mapping[str, float] = settings["prices"]
        threading.Thread(target=self._run, name="autoscaling", daemon=True).start()
        if settings["region"]:
            threading.Thread(target=self._keep_prices, name="prices", daemon=True).start()

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._closed.is_set()

    def replicas(self, market: MarketKind, now: int) -> int:
        """Serve's question: how many replicas on this market; `now` is its present target."""
        self._asked_s = time.monotonic()
        self._wanted[market] = now
        return now if self._decision is None or self.closed else self._decision.replicas[market]

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _run(self) -> None:
        bulletin = Bulletin(self._gcs_address)
        while not self._closed.wait(INTERVAL_S):
            if time.monotonic() - self._asked_s > FORSAKEN_S:
                self.close()
                self._ask(())
                return
            try:
                self._step(bulletin)
            except Exception:  # Ray's RPC errors have no common type, and a service is not to stand still for one of them
                _log.exception("no decision on replicas for now; the counts stay")

    def _step(self, bulletin: Bulletin) -> None:
        if not (gateways := bulletin.read(GATEWAYS, max_age_s=FRESH_S)):
            return  # nobody has looked at the load yet
        self._window.add(gateways)
        now_s, running = time.time(), bulletin.read(REPLICAS, max_age_s=FRESH_S)
        if self._decision is None:  # by now every deployment has asked; what it asked for holds until the load has been lower for a while
            self._steward.target = Target(sum(self._wanted.values()), peak=0, since_s=now_s)
        self._steward.ground = replace(self._steward.ground, prices=self._prices)
        sight = Sight(now_s, self._window.load(), census(self._gcs_address), running, self._wanted)
        decision = self._steward.decide(sight)
        for node in decision.give_back:  # before the counts go down: then the replicas there are those that Serve stops
            self._give_back(node, decision)
        self._decision = decision
        listen(bulletin, self._app, self._steward.placement.drain_lead_s)  # machines with notice are replaced
        if decision.differs(self._told):
            self._tell(bulletin, decision)
            self._told = decision
        if decision.bundles != self._standing:
            self._ask(decision.bundles)
            self._standing = decision.bundles

    def _give_back(self, node: str, decision: Decision) -> None:
        """Drain a node; one that cannot be drained holds nothing else up, and the next decision asks again."""
        try:
            drain(node, "given back: " + "; ".join(decision.reasons), None, gcs_address=self._gcs_address)
        except Exception as error:  # it may have gone by itself, Ray may refuse, and RPC errors have no common type
            _log.warning("not given back for now: %s: %s", node[:12], error_line(error))

    def _keep_prices(self) -> None:
        """Look at the market now and then, beside the decisions: AWS may take its time."""
        while not self._closed.wait(PRICES_S):
            try:
                self._prices = prices_now(self.settings) or self._prices
            except Exception:  # boto3's errors have no common type either
                _log.exception("no prices for now; the latest stay")

    def _ask(self, bundles: tuple[Bundle, ...]) -> None:
        """Replace Ray's standing request for machines."""
        if not self._steward.ground.types:
            return
        wishes = [{"resources": dict(b.resources), "label_selector": dict(b.labels)} for b in bundles for _ in range(b.count)]
        request_cluster_resources(self._gcs_address, wishes)

    def _tell(self, bulletin: Bulletin, decision: Decision) -> None:
        self._log.append(decision.note())
        _log.info("replicas: %s, because %s", dict(decision.replicas), "; ".join(decision.reasons))
        bulletin.post(DECISIONS, self._app, {"decisions": list(self._log)})


def steward(settings: Mapping[str, Any]) -> Steward:
    """The steward that a policy's arguments (plain JSON data) describe, with nothing to serve yet."""
    types = tuple(NodeType(**kind) for kind in settings["types"])
    ground = Ground(types, settings["zone"], settings["cpus"], settings["gpus"], settings["prices"], settings["zones"])
    scale = parse(AutoscaleSettings, settings["autoscale"], where="autoscale")
    return Steward(ground, scale, parse(PlacementSettings, settings["placement"], where="placement"), Target(0))


def decisions(app: str, gcs_address: str | None = None) -> list[dict[str, Any]]:
    """The latest decisions of an application, oldest first (serve.scaling.steward.Decision.note), from any process of the cluster."""
    found: list[dict[str, Any]] = Bulletin(gcs_address).read(DECISIONS).get(app, {}).get("decisions", [])
    return found


_RUNNING: dict[str, Autoscaling] = {}


def autoscaling(app: str, settings: Mapping[str, Any], deployment: str, now: int) -> int:
    """Serve's question for one deployment: how many replicas; the first one starts the thread, other settings replace it."""
    market = DEPLOYMENTS[deployment]
    mine = _RUNNING.get(app)
    if mine is None or mine.closed or mine.settings != settings:
        if mine is not None:
            mine.close()
        mine = _RUNNING[app] = Autoscaling(app, settings)
    return mine.replicas(market, now)
