"""The life of one worker: restore, train, leave in time when a machine goes, export at the end.

Promise: all workers of a group leave after the same step, with that step committed, as soon as any of them has been given notice and
the time is up (train/elastic/deadline.py), or when there is room for more of them. Price: four numbers are compared among the workers
after each step; each worker asks for its machine's drain state five times a second, in a thread.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import ray.train
import torch
import torch.distributed
from ray.experimental import internal_kv

from cluster.preemption import DrainWatch
from train.checkpoint import Checkpoints, restore
from train.elastic.deadline import choose
from train.job import Ended, Orders
from train.loop import held_out_loss, run
from train.progress.meter import Meter, model_flops_per_token
from train.progress.telling import telling
from train.state import State
from train.steppers import make_stepper

__all__ = ["GROW", "NAMESPACE", "UP", "life_of_a_worker"]

NAMESPACE = b"sterna-train"
GROW = b"/grow"
"""After a group's key: where the driver says that there is room for more workers."""
UP = b"/up"
"""After a group's key: where worker 0 says when the group was ready for its first step."""
_ASK_S = 0.5
_RECENT = 32  # steps whose longest is what a step may take
_STAYS = 1e18  # seconds left on a machine that stays


def life_of_a_worker(config: dict[str, Any]) -> Ended:
    """What every worker runs; worker 0's return value counts."""
    orders: Orders = config["orders"]
    job, saved = orders.job, orders.saved
    recipe = replace(orders.recipe, precision=saved.precision) if saved else orders.recipe
    torch.set_num_threads(orders.num_threads)
    device = ray.train.torch.get_device()
    with DrainWatch(announcements=True) as watch, Ear(orders.key + GROW if _rank() == 0 else None) as ear:
        model = job.build()
        flops = model_flops_per_token(model, recipe.sequence_length)
        stepper = make_stepper(model, recipe, device)
        held_out = job.held_out() if job.held_out else None
        before = held_out_loss(stepper, held_out, recipe.micro_batch) if held_out else None
        state = restore(saved, stepper) if saved else State()
        checkpoints = Checkpoints(f"{job.folder}/checkpoints", stepper, orders.attempt, orders.save_s)
        lookout = Lookout(watch, ear, checkpoints, stepper, device)
        source = job.source()
        meter = Meter.on(device, stepper.precision, recipe, flops) if stepper.rank == 0 else None
        _report_start(orders.key, stepper.rank)
        with telling(job.label, job.folder, state, meter, partial(_tell, orders.key)) as voice:
            state = run(
                stepper,
                source,
                recipe,
                state=state,
                report=voice.report,
                undone=voice.undone,
                checkpoint=checkpoints.save,
                stop=lambda now: now.step < recipe.steps and lookout(now),
            )
        if lookout.ended:
            return lookout.ended
        checkpoints.settle()
        stepper.barrier()
    after = held_out_loss(stepper, held_out, recipe.micro_batch) if held_out else None
    weights = stepper.weights()
    if stepper.rank == 0:
        job.export(model, weights)
    stepper.barrier()
    return lookout.end("finished", "all steps are done", state, precision=stepper.precision, loss_before=before, loss_after=after)


class Ear:
    """Hears, in a thread, whether the driver wants the group to stop because there is room for more workers."""

    def __init__(self, key: bytes | None) -> None:
        """`key` is None on all workers but one: the others need not ask."""
        self._key, self._closed, self.told = key, threading.Event(), False

    def __enter__(self) -> Ear:
        if self._key:
            threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _listen(self) -> None:
        while not self._closed.wait(_ASK_S):
            if internal_kv._internal_kv_get(self._key, namespace=NAMESPACE):
                self.told = True
                return


class Lookout:
    """Asked by the loop after each step whether to stop; all workers ask together and hear the same."""

    def __init__(self, watch: DrainWatch, ear: Ear, checkpoints: Checkpoints, stepper: Any, device: torch.device) -> None:
        self._watch, self._ear, self._checkpoints, self._stepper, self._device = watch, ear, checkpoints, stepper, device
        self._seconds: deque[float] = deque(maxlen=_RECENT)
        self._asked = time.monotonic()
        self.ended: Ended | None = None

    def __call__(self, state: State) -> bool:
        now = time.monotonic()
        self._seconds.append(now - self._asked)
        self._asked = now
        left, step_s, save_s, grow = self._most(-self._left_s(), max(self._seconds), self._checkpoints.cost_s or -1.0, self._ear.told)
        left = -left
        if left < _STAYS / 2:
            choice = choose(left, step_s, save_s if save_s > 0 else None)
            if choice.save:
                self._leave(state, "left", choice.reason)
        elif grow:
            self._leave(state, "grew", "there is room for more workers")
        return self.ended is not None

    def end(self, why: Any, reason: str, state: State, **more: Any) -> Ended:
        """The group's last word; a finished one's holds the state."""
        step_s, kept = median(self._seconds) if self._seconds else 0.0, state if why == "finished" else None
        return Ended(why, reason, state.step, step_s, self._checkpoints.cost_s, self._checkpoints.blocked_s, kept, **more)

    def _leave(self, state: State, why: str, reason: str) -> None:
        if self._checkpoints.last is not state:
            self._checkpoints.save(state)
        self._checkpoints.settle()
        self._stepper.barrier()  # every part is in place: whoever was last has committed
        self.ended = self.end(why, reason, state)

    def _left_s(self) -> float:
        """Seconds until this worker's machine is gone: 0 when it will be at some time."""
        deadline = self._watch.deadline or self._watch.announced.get(self._watch.node_id)
        if deadline is None:
            return _STAYS
        return 0.0 if math.isinf(deadline) else deadline - time.time()

    def _most(self, *values: float) -> list[float]:
        """The largest of each among all workers."""
        if self._stepper.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return [float(value) for value in tensor]


def _report_start(key: bytes, rank: int) -> None:
    if rank == 0:
        _tell(key + UP, {"at_s": time.time()})


def _tell(key: bytes, news: dict[str, Any]) -> None:
    internal_kv._internal_kv_put(key, json.dumps(news).encode(), overwrite=True, namespace=NAMESPACE)


def _rank() -> int:
    return ray.train.get_context().get_world_rank()
