"""`sterna drill`: machines are taken from under running streams, and the clients must not notice.

Promise: on a cluster of its own (one on-demand node, two spot nodes, all on this machine) every stream of an undisturbed run is
asked again twice: while a spot node gets notice, drains and is killed at its deadline, and while another is killed without a
word. The drill succeeds only if streams were in the middle of generation on the machine that went, and every one of them
ended complete with the tokens, the text and the log probabilities of the undisturbed run: none lost, none repeated.
Price: about a minute on two cores for a model of some million parameters.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import psutil
import ray
import ray.serve
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray.cluster_utils import Cluster

from cluster.artifact import Artifact, Draft, finished, open_artifact, publish
from cluster.console import say
from cluster.figure import table, timeline
from cluster.preemption import drain
from cluster.storage import digest_of
from pipelines.config import DrillConfig
from pipelines.drill_streams import Heard, Question, ask_all, difference, questions
from serve.app import APP, MARKET, free_port, gateways_of, quiet_ray, running
from serve.config import ServeConfig
from serve.folder import model_folder

__all__ = ["Fleet", "drill", "fleet_of", "replicas_running", "vanish"]

WARM_TOKENS = 20
"""A stream is in the middle of generation from here on."""
_STORE_BYTES = 100 << 20
_LOOK_S = 0.02
_FRAME_S = 0.05
"""Three replicas, gateway, proxy and clients share this machine's cores: fewer frames leave more of them to the engines."""
_PROMPT_ROOM = 64
"""Tokens of the model's context left for the prompt."""


@dataclass(slots=True)
class Fleet:
    """The drill's cluster: node names for people, and when each came and went."""

    cluster: Any
    nodes: dict[str, Any] = field(default_factory=dict)
    """Name -> cluster_utils node, living or gone."""
    lives: dict[str, list[float]] = field(default_factory=dict)
    """Name -> [came] or [came, went], unix seconds."""

    def add(self, market: str) -> str:
        """A new node of one CPU."""
        name = f"{market}-{sum(n.startswith(market) for n in self.nodes) + 1}"
        self.nodes[name] = self.cluster.add_node(
            num_cpus=1, labels={MARKET: market}, object_store_memory=_STORE_BYTES, include_dashboard=False
        )
        self.lives[name] = [time.time()]
        return name

    def kill(self, name: str) -> None:
        """The machine is gone, at once."""
        node = self.nodes[name]
        for raylet in node.all_processes[PROCESS_TYPE_RAYLET]:
            vanish(raylet.process.pid)
        self.lives[name].append(time.time())
        self.cluster.remove_node(node, allow_graceful=False)  # what is left of it

    def lost(self) -> list[str]:
        """Machines that nobody killed, and that Ray has lost all the same."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return [name for name, life in self.lives.items() if len(life) == 1 and self.nodes[name].node_id not in alive]

    def name(self, node_id: str) -> str:
        """The name of a node by Ray's id."""
        return next(name for name, node in self.nodes.items() if node.node_id == node_id)


@dataclass(slots=True)
class Event:
    """What one event did."""

    title: str
    victim: str
    victim_id: str
    """Ray's id of the victim."""
    hit: list[str]
    """Streams in the middle of generation on the victim."""
    marks: list[tuple[float, str]]
    stays: list[dict[str, Any]]
    heard: list[list[Heard]]
    began_s: float
    ended_s: float = 0.0

    @property
    def arrivals(self) -> list[dict[str, Any]]:
        """Where each stream that the victim's end drove away in the middle went on."""
        by_stream: dict[str, list[dict[str, Any]]] = {}
        for stay in self.stays:
            if stay["first_s"] is not None:
                by_stream.setdefault(stay["stream"], []).append(stay)
        moves = [move for stays in by_stream.values() for move in pairwise(stays)]
        return [b for a, b in moves if a["node_id"] == self.victim_id]

    @property
    def ways(self) -> Counter[str]:
        """How they came there: kv, recompute, crash."""
        return Counter(stay["how"] for stay in self.arrivals)

    def left(self, how: str) -> int:
        """Streams that left the victim this way after they had begun there."""
        return sum(stay["node_id"] == self.victim_id and stay["end"] == how and stay["num_tokens"] > 0 for stay in self.stays)


def vanish(pid: int) -> None:
    """Kill a process and all below it together, as when a machine goes: Ray's workers would go on until they miss their daemon."""
    processes = []
    with suppress(psutil.NoSuchProcess):  # an idle machine that drains ends by itself
        daemon = psutil.Process(pid)
        processes = [daemon, *daemon.children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # over already, or by the daemon's end
            process.kill()


def drill(config: DrillConfig) -> Artifact:
    """Run the drill and publish its figures. RuntimeError if any client noticed anything."""
    if ray.is_initialized():
        raise ValueError("drill: this process is attached to a Ray cluster, and the drill starts its own; run `sterna drill` by itself")
    inputs = {"model": _digest(config.model)}
    if (done := finished(config.output, stage="drill", inputs=inputs, config=config)) is not None:
        say(f"{config.output}: already done")
        return done
    with publish(config.output, stage="drill", inputs=inputs, config=config) as draft:
        began = time.time()
        with quiet_ray(), fleet_of(2) as fleet:
            serving = ServeConfig(
                model=config.model, port=free_port(), spot_replicas=2, on_demand_replicas=1, engine=config.engine, frame_s=_FRAME_S
            )
            say("drill: one on-demand node, two spot nodes; starting three replicas")
            with running(serving) as url:
                events, undisturbed = asyncio.run(_perform(config, fleet, url))
        _report(draft, config, fleet, events, undisturbed, began)
    return open_artifact(config.output, made_by="drill")


async def _perform(config: DrillConfig, fleet: Fleet, url: str) -> tuple[list[Event], list[list[Heard]]]:
    card = httpx.get(f"{url}/models", timeout=10.0).json()["data"][0]  # the model; adapters follow
    tokens = min(config.tokens, card["max_model_len"] - _PROMPT_ROOM)
    asked = questions(config.prompts, model=card["id"], count=config.streams, tokens=tokens, seed=config.seed)
    undisturbed = await ask_all(url, asked)
    say(f"drill: {len(asked)} undisturbed streams of {tokens} tokens recorded")

    async def with_notice(victim: str, marks: list[tuple[float, str]]) -> None:
        drain(fleet.nodes[victim].node_id, "fire drill", config.notice_s)
        marks.append((time.time(), f"{victim}: notice, {config.notice_s:g} s"))
        await asyncio.sleep(config.notice_s)  # the deadline itself
        await asyncio.to_thread(fleet.kill, victim)
        marks.append((fleet.lives[victim][-1], f"{victim}: killed"))

    async def without(victim: str, marks: list[tuple[float, str]]) -> None:
        await asyncio.to_thread(fleet.kill, victim)
        marks.append((fleet.lives[victim][-1], f"{victim}: killed without notice"))

    first = await _event("preempted with notice", fleet, url, asked, with_notice)
    fleet.add("spot")  # in this thread, the main one: Ray sets signal handlers; no stream waits for it
    say("drill: a fresh spot node joins")
    await _all_replicas(2)
    second = await _event("killed without notice", fleet, url, asked, without)
    return [first, second], undisturbed


async def _event(
    title: str, fleet: Fleet, url: str, asked: list[Question], strike: Callable[[str, list[tuple[float, str]]], Awaitable[None]]
) -> Event:
    """Ask everything again and strike the spot node with the most streams in the middle of generation."""
    began = time.time()
    streams = asyncio.create_task(ask_all(url, asked))
    victim, hit = await _victim(fleet, streams, began)
    marks: list[tuple[float, str]] = []
    await strike(victim, marks)
    heard = await streams
    event = Event(title, victim, fleet.nodes[victim].node_id, hit, marks, await _stays(began), heard, began, time.time())
    if not event.left("moved") + event.left("lost"):
        raise RuntimeError(f"drill: {title}: the streams on {victim} were over before it went; use more --tokens")
    took = f"{event.marks[0][0] - began:.1f} s into {event.ended_s - began:.1f} s of streams"
    say(
        f"drill: {title}, {took}: {len(hit)} were on {victim}; {event.left('moved')} moved, {event.left('lost')} resumed "
        f"({', '.join(f'{count} {how}' for how, count in sorted(event.ways.items()))})"
    )
    return event


async def _victim(fleet: Fleet, streams: asyncio.Task[Any], began: float) -> tuple[str, list[str]]:
    """The spot node with the most streams in the middle, as soon as all that are there have begun."""
    while not streams.done():
        here: dict[str, list[dict[str, Any]]] = {}
        for stay in await _stays(began):
            if stay["end"] is None and (name := fleet.name(stay["node_id"])).startswith("spot"):
                here.setdefault(name, []).append(stay)
        warm = {name: all(stay["num_tokens"] >= WARM_TOKENS for stay in stays) for name, stays in here.items()}
        ready = [name for name in here if warm[name]]
        if ready:
            name = max(ready, key=lambda name: len(here[name]))
            return name, [stay["stream"] for stay in here[name]]
        await asyncio.sleep(_LOOK_S)
    await streams  # its error, if it failed
    raise RuntimeError("drill: the streams were over before anything could happen to them; use more --tokens")


async def _stays(since_s: float) -> list[dict[str, Any]]:
    """The gateway's journal from `since_s` on."""
    rows: list[dict[str, Any]] = await gateways_of(APP).journal.remote()
    return [row for row in rows if row["start_s"] >= since_s]


async def _all_replicas(count: int) -> None:
    """Wait until `count` spot replicas run; one on a draining node does not count as running."""
    while (await asyncio.to_thread(replicas_running, APP, "spot")) < count:
        await asyncio.sleep(0.1)  # Serve has no event for it


def replicas_running(app: str, deployment: str) -> int:
    """How many of a deployment's replicas run; one on a draining node does not count."""
    return int(ray.serve.status().applications[app].deployments[deployment].replica_states.get("RUNNING", 0))


def _report(draft: Draft, config: DrillConfig, fleet: Fleet, events: list[Event], undisturbed: list[list[Heard]], began: float) -> None:
    differences = [
        f"{event.title}, stream {i}, choice {c}: {what}"
        for event in events
        for i, (wants, gots) in enumerate(zip(undisturbed, event.heard, strict=True))
        for c, (want, got) in enumerate(zip(wants, gots, strict=True))
        if (what := difference(want, got))
    ]
    if differences:
        raise RuntimeError(f"drill: {len(differences)} streams are not what they are undisturbed; {'; '.join(differences[:5])}")
    choices = sum(len(gots) for event in events for gots in event.heard)
    moved, resumed = (sum(event.left(how) for event in events) for how in ("moved", "lost"))
    ways = sum((event.ways for event in events), Counter[str]())
    longest_s = max((stay["gap_s"] for event in events for stay in event.arrivals), default=0.0)
    silence = max(heard.longest_silence_s for event in events for gots in event.heard for heard in gots)
    draft.counts = {
        "streams": choices, "preemptions": len(events), "hit": sum(len(event.hit) for event in events), "moved_with_notice": moved,
        "resumed_after_crash": resumed, "moved_with_kv": ways["kv"], "tokens_lost": 0, "tokens_repeated": 0,
        "tokens": sum(len(heard.tokens) for event in events for gots in event.heard for heard in gots),
    }  # fmt: skip
    draft.metrics = {"longest_client_silence_s": round(silence, 3), "events": [_figures(event) for event in events]}
    columns = ("event", "streams", "on the machine", "moved", "resumed", "lost tokens", "repeated tokens", "gap p50 ms", "gap max ms")
    rows = [
        (e.title, sum(map(len, e.heard)), len(e.hit), e.left("moved"), e.left("lost"), 0, 0, f["gap_p50_ms"], f["gap_max_ms"])
        for e, f in zip(events, draft.metrics["events"], strict=True)
    ]
    columns_of_ways = ("event", "stream", "how", "KV bytes", "stages", "tokens computed again", "gap ms", "why")
    rows_of_ways = [
        (e.title, s["stream"], s["how"], s["num_bytes"], s["stages"], again, round(1000 * s["gap_s"]), s["why"])
        for e in events for s in e.arrivals
        for again in [s["num_computed"] if s["num_computed_again"] is None else s["num_computed_again"]]
    ]  # fmt: skip
    draft.figures = {
        "drill": table("Machines taken from under running streams", columns, rows),
        "ways": table("How each stream moved, and why so", columns_of_ways, rows_of_ways),
    }
    for event in events:
        draft.figures[f"timeline: {event.title}"] = _timeline(event, fleet)
    draft.headline = (
        f"{choices} streams, {len(events)} preemptions, {moved} moved, {resumed} resumed, 0 lost, 0 repeated, longest gap {longest_s:.1f} s"
    )
    (draft.dir / "heard.txt").write_text("\n\n".join(f"--- stream {i}\n{gots[0].text}" for i, gots in enumerate(undisturbed)))


def _figures(event: Event) -> dict[str, Any]:
    gaps_ms = sorted(1000 * stay["gap_s"] for stay in event.arrivals)
    return {
        "title": event.title, "victim": event.victim, "hit": len(event.hit), "moved": event.left("moved"), "resumed": event.left("lost"),
        "gap_p50_ms": round(statistics.median(gaps_ms)) if gaps_ms else 0, "gap_max_ms": round(gaps_ms[-1]) if gaps_ms else 0,
        "ways": dict(event.ways),
    }  # fmt: skip


def _timeline(event: Event, fleet: Fleet) -> Any:
    """Lanes: each machine's life, then each stream with the machines it stayed on; seconds since the event's streams began."""
    zero, end = event.began_s, event.ended_s
    lanes: dict[str, list[tuple[float, float, str]]] = {}
    for name, life in fleet.lives.items():
        came, went = max(life[0], zero), min(life[1], end) if len(life) > 1 else end
        if came < end and went > zero:
            lanes[name] = [(came - zero, went - zero, "alive")]
    number = {stream: i + 1 for i, stream in enumerate(dict.fromkeys(stay["stream"] for stay in event.stays))}
    for stay in event.stays:
        span = (stay["start_s"] - zero, (stay["end_s"] or end) - zero, fleet.name(stay["node_id"]))
        lanes.setdefault(f"stream {number[stay['stream']]:02}", []).append(span)
    return timeline(f"Streams: {event.title}", lanes, [(t - zero, label) for t, label in event.marks])


@contextmanager
def fleet_of(num_spot: int) -> Iterator[Fleet]:
    """A cluster on this machine: an on-demand node, which is the head, and some spot nodes. This process is its driver."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    cluster = Cluster()
    fleet = Fleet(cluster)
    try:
        for market in ("on-demand", *["spot"] * num_spot):
            fleet.add(market)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield fleet
    finally:
        ray.shutdown()
        cluster.shutdown()


def _digest(model: str) -> str:
    """Identity of a model folder by its files' names, sizes and times: the drill's outcome does not depend on the weights."""
    folder = model_folder(model)
    if "://" in model:
        return folder.name  # downloaded by digest
    return digest_of(sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.iterdir() if f.is_file()))
