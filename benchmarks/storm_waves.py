"""Our own service under the storm, in waves: all questions at once, struck until every stream was hit, beside the undisturbed run.

Promise: a wave's record says of every stream whether it ended complete and what it does not share with the undisturbed run, of every
strike when it came and what it aimed at, and has the gateway's journal of the wave. A stream that fails is counted, not raised. A wave
begins when all replicas run and ends when its streams do; while streams of it were not hit yet, a strike does not wait longer than these
will last. Each wave has an API key of its own, so that no prefix cache knows its answers from the wave before. Price: as the streams.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import httpx
from ray.serve.handle import DeploymentHandle

from benchmarks.storm_fleet import LOOK_S, PATIENCE_S, Live, Schedule, Storm
from cluster.console import error_line
from pipelines.drill import Fleet, fleet_of, replicas_running
from pipelines.drill_streams import Heard, Question, difference, hear, heard_of, questions
from serve.app import APP, free_port, gateways_of, quiet_ray, running
from serve.config import ServeConfig
from serve.engine.config import EngineConfig
from serve.moves.handover import MoveKv

__all__ = ["NUM_SPOT", "Service", "Wave", "asked_of", "record", "service", "storm_wave", "undisturbed"]

NUM_SPOT = 3
WARM_TOKENS = 20
"""A stream is in the middle of generation from here on,"""
LAST_SHARE = 0.9
"""and until so much of it is out."""
LONG_SHARE = 0.8
"""A stream that ends before so many of the tokens asked for is too short to be sure to be hit: it is asked with another seed."""
WITHIN = 5
"""Streams that no strike has hit are hit within this many parts of their length: one strike for each part, and one part for the rest."""
ATTEMPTS = 10
KEYS = "STERNA_STORM_KEYS"
NUM_KEYS = 64
"""More waves than a storm has."""
_CALL_S = 60.0
_FRAME_S = 0.05
Explain = Callable[[Question, int, Heard, Heard], dict[str, Any]]
"""Of a stream that is not what it was undisturbed (question, choice, undisturbed, heard): what accounts for that."""


def asked_of(model: str, prompts: Sequence[str], count: int, tokens: int, seed: int) -> list[Question]:
    """`count` questions of six kinds; those with a JSON schema ask for lists of words too long to end early."""
    num_json = count // 6
    words = {"type": "array", "items": {"type": "string", "pattern": "[a-z]{6,12}"}, "minItems": tokens // 4}
    common = {"model": model, "max_tokens": tokens, "stream": True, "return_token_ids": True, "structured_outputs": {"json": words}}
    held = [
        Question("json schema", {**common, "prompt": prompts[i % len(prompts)], "temperature": 0.8, "seed": seed + 1000 + i})
        for i in range(num_json)
    ]
    return questions(prompts, model=model, count=count - num_json, tokens=tokens, seed=seed) + held


@dataclass(frozen=True, slots=True)
class Service:
    """Our service on a fleet of its own."""

    machines: Fleet
    url: str
    keys: Sequence[str]
    gateway: DeploymentHandle[Any]

    def journal(self) -> list[dict[str, Any]]:
        """The gateway's."""
        rows: list[dict[str, Any]] = self.gateway.journal.remote().result(timeout_s=_CALL_S)
        return rows

    def up(self, count: int = NUM_SPOT) -> bool:
        """Whether so many replicas run."""
        return replicas_running(APP, "spot") >= count


@contextmanager
def service(model: str, config: EngineConfig, move_kv: MoveKv) -> Iterator[Service]:
    """Three replicas on spot machines, the gateway on the head."""
    keys = [f"sk-storm-{secrets.token_hex(16)}" for _ in range(NUM_KEYS)]
    with quiet_ray(), fleet_of(NUM_SPOT) as machines:
        os.environ[KEYS] = " ".join(keys)  # digests take their place when they are read
        serving = ServeConfig(
            model=model, port=free_port(), spot_replicas=NUM_SPOT, on_demand_replicas=0, engine=config, frame_s=_FRAME_S,
            move_kv=move_kv, api_keys=f"env:{KEYS}", max_wait_s=PATIENCE_S, max_request_s=1800.0,
        )  # fmt: skip
        with running(serving) as url:
            yield Service(machines, url, keys, gateways_of(APP))


class Wave:
    """All questions at once, and what their clients have heard so far."""

    def __init__(self, url: str, key: str, asked: Sequence[Question]) -> None:
        self._url, self._key, self.asked = url, key, asked
        self.heard = [heard_of(question) for question in asked]
        self.errors = [""] * len(asked)
        """Why each question's streams failed, if they did."""
        self.began_s = self.ended_s = 0.0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()), name="clients", daemon=True)

    def start(self) -> None:
        """Ask."""
        self.began_s = time.time()
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of all streams; the service bounds it (`max_request_s`)."""
        self._thread.join()
        if not self.ended_s:
            raise RuntimeError("storm: the clients failed")  # their own traceback says how

    @property
    def going(self) -> bool:
        """Whether streams are on their way."""
        return self._thread.is_alive()

    async def _ask(self) -> None:
        limits, header = httpx.Limits(max_connections=len(self.asked)), {"authorization": f"Bearer {self._key}"}
        async with httpx.AsyncClient(
            base_url=self._url, headers=header, timeout=httpx.Timeout(120.0), limits=limits, trust_env=False
        ) as client:
            await asyncio.gather(*(self._one(client, index) for index in range(len(self.asked))))
        self.ended_s = time.time()

    async def _one(self, client: httpx.AsyncClient, index: int) -> None:
        try:
            await hear(client, self.asked[index], self.heard[index])
        except Exception as error:  # however a stream fails, it is counted, and the others go on
            self.errors[index] = f"{type(error).__name__}: {error}"

    def unhit(self, hits: Mapping[str, int]) -> bool:
        """Whether a stream that goes on was never hit."""
        going = [heard for choices, error in zip(self.heard, self.errors, strict=True) if not error for heard in choices]
        return any(heard.finish_reason is None and not hits.get(heard.stream, 0) for heard in going)

    def shares(self, want: Sequence[Sequence[Heard]]) -> dict[str, float]:
        """Streams in the middle of generation: the share of their tokens that is out."""
        found = {}
        for wants, gots in zip(want, self.heard, strict=True):
            for expected, heard in zip(wants, gots, strict=True):
                share = len(heard.tokens) / len(expected.tokens)
                if heard.finish_reason is None and len(heard.tokens) >= WARM_TOKENS and share <= LAST_SHARE:
                    found[heard.stream] = share
        return found


def undisturbed(url: str, key: str, asked: Sequence[Question], tokens: int) -> tuple[list[Question], list[list[Heard]]]:
    """What every question is answered if nothing happens; those that end early (a stop string was drawn) with another seed."""
    asked = list(asked)
    found: dict[int, list[Heard]] = {}
    for _ in range(ATTEMPTS):
        missing = [i for i in range(len(asked)) if i not in found]
        wave = Wave(url, key, [asked[i] for i in missing])
        wave.start()
        wave.join()
        if failed := [error for error in wave.errors if error]:
            raise RuntimeError(f"storm: {len(failed)} undisturbed streams failed: {failed[0]}")
        for i, choices in zip(missing, wave.heard, strict=True):
            if min(len(heard.tokens) for heard in choices) >= LONG_SHARE * tokens:
                found[i] = choices
            else:
                asked[i] = replace(asked[i], body={**asked[i].body, "seed": asked[i].body.get("seed", 0) + 1_000_003})
        if len(found) == len(asked):
            return asked, [found[i] for i in range(len(asked))]
    raise RuntimeError(f"storm: {len(asked) - len(found)} questions end early with {ATTEMPTS} seeds; ask for fewer --tokens")


def storm_wave(
    service: Service, key: str, asked: Sequence[Question], want: Sequence[Sequence[Heard]], schedule: Schedule, done: int, last: int
) -> tuple[Wave, Storm]:
    """One wave under strikes number `done`, …: until there were `last` of them and all of it was hit (if they can: there are three
    machines), or it is over."""
    _until(service.up, "the replicas did not come up")
    wave = Wave(service.url, key, asked)

    def live() -> Live:
        middle = wave.shares(want)
        where = {row["stream"]: row["node_id"] for row in service.journal() if row["end"] is None and row["num_tokens"]}
        return {stream: where[stream] for stream in middle if stream in where}

    def urgent() -> bool:
        unhit = [share for stream, share in wave.shares(want).items() if not storm.hits[stream]]
        return max(unhit, default=0.0) > (len(storm.strikes) + 1) / WITHIN

    storm = Storm(service.machines, live, lambda: service.up(NUM_SPOT - 1 if urgent() else NUM_SPOT))
    wave.start()
    while wave.going:
        number = done + len(storm.strikes)
        if number >= last and (last < NUM_SPOT or not wave.unhit(storm.hits)):
            break
        _pause(schedule.pause(number), lambda: urgent() or not wave.going)
        storm.strike(number, schedule.notice(number), lambda: not wave.going, fresh=number >= last)
    wave.join()
    return wave, storm


def _pause(seconds: float, cut: Callable[[], bool]) -> None:
    """The trace's pause, cut short where streams would end before they were hit."""
    end = time.monotonic() + seconds
    while (left_s := end - time.monotonic()) > 0 and not cut():
        time.sleep(min(LOOK_S, left_s))


def _until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError(f"storm: {what} within {PATIENCE_S:g} s")
        time.sleep(LOOK_S)  # Serve has no event for it


def record(
    wave: Wave, storm: Storm, want: Sequence[Sequence[Heard]], journal: Sequence[Mapping[str, Any]], explain: Explain
) -> dict[str, Any]:
    """A wave as plain data."""
    streams = []
    for i, (question, wants, gots) in enumerate(zip(wave.asked, want, wave.heard, strict=True)):
        for choice, (expected, heard) in enumerate(zip(wants, gots, strict=True)):
            what = wave.errors[i] or difference(expected, heard)
            streams.append({
                "stream": heard.stream, "kind": question.kind, "question": i, "choice": choice, "num_tokens": len(heard.tokens),
                "num_wanted": len(expected.tokens), "complete": not wave.errors[i] and heard.finish_reason is not None,
                "silence_s": heard.longest_silence_s, "difference": what,
                "why": _explained(explain, question, choice, expected, heard) if what and not wave.errors[i] else None,
            })  # fmt: skip
    names = {stream["stream"] for stream in streams}
    return {
        "began_s": wave.began_s, "ended_s": wave.ended_s, "streams": streams, "strikes": [asdict(strike) for strike in storm.strikes],
        "stays": [dict(row) for row in journal if row["stream"] in names],
    }  # fmt: skip


def _explained(explain: Explain, question: Question, choice: int, want: Heard, got: Heard) -> dict[str, Any]:
    try:
        return explain(question, choice, want, got)
    except Exception as error:  # the wave's record is worth more; what nobody could explain is not explained
        return {"explained": False, "failed": error_line(error)}
