"""The cloud's interruption notice -> a drain of this machine's Ray node: the watcher that runs on every spot machine.

Promise: within `interval_s` a notice (cluster/metadata.py: AWS, Google Cloud, Azure, a file) is announced (cluster/announcement.py), so
that a replacement is asked for; it becomes a Ray drain with its deadline as long before the machine's end as those who listen want, and at
once where nobody listens, where the notice is shorter, or where it has no deadline. A notice that is taken back before the drain leaves no
trace. A metadata service that fails is reported once and asked again for ever; a drain that Ray does not take is tried again.
Price: one or two HTTP requests per interval, one small process. Replicas, routers and training read the drain from Ray.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import httpx

from cluster.console import say
from cluster.metadata import AwsMetadata, AzureMetadata, GcpMetadata, Notice, NoticeFile, Source
from cluster.placement import PlacementSettings, drain_at
from cluster.settings import settings

if TYPE_CHECKING:
    from cluster.bulletin import Bulletin

__all__ = ["WatchConfig", "watch"]


@settings
class WatchConfig:
    """`sterna cluster watch`: drains this machine's Ray node when its cloud says that the machine will be taken away."""

    cloud: Literal["auto", "aws", "gcp", "azure", "file"] = "auto"
    """Who gives notice: aws, gcp, azure, file, or auto: whichever metadata service answers on this machine."""
    file: str | None = None
    """A file whose appearance is a notice (watched beside the cloud, too). Empty: the machine goes in 120 s; or JSON with `seconds` or
    an ISO 8601 `time`, and a `reason`."""
    metadata_url: str | None = None
    """Base URL of the metadata service, instead of the cloud's own."""
    interval_s: float = 2.0
    """Seconds between two looks. AWS gives notice 120 s ahead, Google Cloud and Azure 30 s."""
    grace_s: float = 2.0
    """Seconds by which the deadline is brought forward, for the shutdown itself."""
    rebalance: bool = True
    """Whether AWS's rebalance recommendation (an elevated risk, no deadline) drains the node already."""
    acknowledge: bool = False
    """Whether to tell Azure, once the node has left Ray, that the machine may go before its deadline (other clouds do not ask)."""
    node: str | None = None
    """Id (hexadecimal) of the Ray node to drain; by default every Ray node at this machine's address."""
    address: str = "auto"
    """Address of the Ray cluster (host:port); auto: the cluster that runs on this machine."""

    def __post_init__(self) -> None:
        if self.cloud == "file" and not self.file:
            raise ValueError("file: is not given; with cloud=file, say which file is the notice")
        if not self.interval_s > 0:
            raise ValueError(f"interval_s: is {self.interval_s}; must be above 0")
        if not self.grace_s >= 0:
            raise ValueError(f"grace_s: is {self.grace_s}; must not be negative")


def watch(config: WatchConfig, stop: threading.Event | None = None) -> Notice | None:
    """Block until this machine is given notice and its Ray node is draining, or `stop` is set; the notice that was acted on.

    A rebalance recommendation drains and the watch goes on, for the deadline that may follow.
    """
    stop = stop or threading.Event()
    with httpx.Client(timeout=2.0, trust_env=False) as client:  # a proxy must never see a metadata request
        sources = _sources(config, client)
        if not (nodes := _await_nodes(config, stop)):
            return None
        say(f"watching {', '.join(type(s).__name__ for s in sources)} for Ray node {', '.join(node[:12] for node in nodes)}")
        deeds, trouble = _Deeds(config), ""
        while not stop.is_set():
            notice, problem = _look(sources)
            problem = deeds.heed(notice, problem) or problem
            if problem and problem != trouble:
                say(f"{problem}; trying again every {config.interval_s:g} s")
            trouble = problem
            if deeds.drained is not None and deeds.drained.final:
                _acknowledge(config, sources, deeds.drained, stop)
                return deeds.drained
            stop.wait(deeds.pause_s())
    return deeds.drained


@dataclass(slots=True)
class _Deeds:
    """What has been done about this machine's notices."""

    config: WatchConfig
    drained: Notice | None = None
    """For which Ray drains."""
    due_s: float = math.inf
    """When a drain is to begin that has been put off."""
    _announced: Notice | None = None
    _heard: dict[float, float] = field(default_factory=dict)
    """Deadline -> when it was first heard of."""

    def heed(self, notice: Notice | None, problem: str) -> str:
        """Do what is to be done now that the sources say `notice`; what went wrong. With a `problem` one of them could say nothing."""
        if notice is None:
            return "" if problem else self._take_back()
        if self.drained is not None and notice.deadline >= self.drained.deadline:
            return ""
        try:
            self.due_s = self._due_s(notice)
            if time.time() < self.due_s:
                self._announce(notice)
                return ""
        except Exception as error:  # Ray's RPC errors have no common type; a drain that may be too early is better than none
            return self._drain(notice) or f"the notice was not announced: {error}"
        return self._drain(notice)

    def pause_s(self) -> float:
        """How long to wait before the next look."""
        left_s = self.due_s - time.time()
        return min(self.config.interval_s, left_s) if left_s > 0 else self.config.interval_s

    def _drain(self, notice: Notice) -> str:
        refusal = _act(self.config, notice)
        if not refusal:
            self.drained, self.due_s = notice, math.inf
        return refusal

    def _due_s(self, notice: Notice) -> float:
        """When to drain: now, unless the machine serves, its end is known, and somebody has it replaced meanwhile."""
        from cluster.announcement import lead

        heard_s = self._heard.setdefault(notice.deadline, time.time())
        wanted_s = lead(_bulletin(self.config)) if notice.final and self.drained is None else None
        if wanted_s is None:
            return heard_s
        return drain_at(heard_s, notice.deadline - self.config.grace_s, PlacementSettings(drain_lead_s=wanted_s))

    def _announce(self, notice: Notice) -> None:
        from cluster.announcement import announce

        if notice == self._announced:
            return
        for node in _nodes(self.config):
            announce(_bulletin(self.config), node, notice.deadline - self.config.grace_s, notice.reason)
            say(f"Ray node {node[:12]} is to be drained in {self.due_s - time.time():.0f} s: {notice.reason}")
        self._announced = notice

    def _take_back(self) -> str:
        """The notice is not there any more."""
        from cluster.announcement import withdraw

        if self._announced is None or self.drained is not None:
            return ""
        try:
            for node in _nodes(self.config):
                withdraw(_bulletin(self.config), node)
        except Exception as error:  # as above
            return f"the notice that was taken back is still announced: {error}"
        say(f"taken back: {self._announced.reason}")
        self._announced, self.due_s = None, math.inf
        return ""


def _look(sources: list[Source]) -> tuple[Notice | None, str]:
    """The most urgent notice of all sources, and what went wrong with one of them."""
    found, problem = [], ""
    for source in sources:
        try:
            if (notice := source.check()) is not None:
                found.append(notice)
        except (httpx.HTTPError, OSError, ValueError) as error:
            problem = f"{type(source).__name__}: {str(error).partition(chr(10))[0] or type(error).__name__}"
    return min(found, key=lambda notice: notice.deadline, default=None), problem


def _act(config: WatchConfig, notice: Notice) -> str:
    """Drain this machine's nodes; what went wrong, or nothing. A node that has left already needs no drain."""
    from cluster.preemption import drain

    left_s = max(0.0, notice.deadline - time.time() - config.grace_s) if notice.final else None
    try:
        for node in _nodes(config):
            drain(node, notice.reason, left_s, gcs_address=_gcs_address(config))
            say(f"draining Ray node {node[:12]}: {notice.reason}" + ("" if left_s is None else f" in {left_s:.0f} s"))
    except Exception as error:  # Ray's RPC errors have no common type, and a notice must not be lost to any of them
        return f"the drain did not reach Ray: {error}"
    return ""


def _acknowledge(config: WatchConfig, sources: list[Source], notice: Notice, stop: threading.Event) -> None:
    """Where the cloud asks for it and the settings allow it: say that the machine may go, as soon as Ray has nothing here any more."""
    azure = next((source for source in sources if isinstance(source, AzureMetadata)), None)
    if not (config.acknowledge and azure and notice.event):
        return
    while not stop.is_set() and time.time() < notice.deadline:
        try:
            if not _nodes(config):
                azure.acknowledge(notice)
                say("the node has left Ray; Azure may take the machine")
                return
        except Exception as error:  # as in `_act`; at the deadline Azure acts without our word
            say(f"not acknowledged yet: {str(error).partition(chr(10))[0]}")
        stop.wait(config.interval_s)


def _sources(config: WatchConfig, client: httpx.Client) -> list[Source]:
    sources: list[Source] = [NoticeFile(config.file)] if config.file else []
    cloud = _detect(config, client) if config.cloud == "auto" else config.cloud
    if cloud == "aws":
        sources.append(AwsMetadata(client, config.metadata_url, rebalance=config.rebalance))
    elif cloud == "gcp":
        sources.append(GcpMetadata(client, config.metadata_url))
    elif cloud == "azure":
        sources.append(AzureMetadata(client, config.metadata_url))
    return sources


def _detect(config: WatchConfig, client: httpx.Client) -> str:
    """Which cloud's metadata service answers here; asked three times, since a machine that boots may not be ready."""
    url = config.metadata_url
    ask: dict[str, Callable[[], object]] = {
        "aws": AwsMetadata(client, url).renew, "gcp": GcpMetadata(client, url).check, "azure": AzureMetadata(client, url).identify,
    }  # fmt: skip
    for _ in range(3):
        for cloud, question in ask.items():
            try:
                question()
            except (httpx.HTTPError, ValueError):
                continue
            return cloud
    raise ValueError(
        "cloud: no metadata service of AWS, Google Cloud or Azure answers on this machine; use --cloud file --file PATH elsewhere"
    )


def _bulletin(config: WatchConfig) -> Bulletin:
    from cluster.bulletin import Bulletin

    return Bulletin(_gcs_address(config))


def _gcs_address(config: WatchConfig) -> str:
    """The address of the cluster's GCS; ConnectionError if none runs here, or several do."""
    from ray._private import services

    return str(services.canonicalize_bootstrap_address_or_die(config.address))


def _nodes(config: WatchConfig) -> list[str]:
    """The living Ray nodes that go when this machine goes: the one that was named, or all at this machine's address."""
    from ray.util import get_node_ip_address

    from cluster.preemption import node_addresses

    addresses = node_addresses(_gcs_address(config))
    here = {get_node_ip_address(), "127.0.0.1"}
    return [node for node, address in addresses.items() if (address in here if config.node is None else node == config.node)]


def _await_nodes(config: WatchConfig, stop: threading.Event) -> list[str]:
    """This machine's Ray nodes, once there are any, since the watcher may start before Ray does; a named one must be there."""
    waited = False
    while not stop.is_set():
        try:
            if nodes := _nodes(config):
                return nodes
            if config.node is not None:
                raise ValueError(f"node: no living Ray node has the id {config.node}; `ray list nodes` shows the ids")
            problem = "no Ray node runs at this machine's address yet"
        except ConnectionError as error:
            if config.address != "auto" or config.node is not None:
                raise ValueError(f"address: {config.address}: {error}") from None
            problem = str(error)
        if not waited:
            say(f"waiting for Ray on this machine ({problem})")
        waited = True
        stop.wait(config.interval_s)
    return []
