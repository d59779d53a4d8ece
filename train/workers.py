"""One training job on Ray Train: groups of workers, one after the other, for as long as machines come and go.

Promise: a group that learns that one of its machines is going leaves with its last step committed, and the next goes on with what is
left; one that is broken off goes on from the newest whole checkpoint; when machines come, the job grows where that pays. It ends when
all steps are done, when a user's mistake shows, or when groups fail again and again by themselves without getting on. The same verb run
again goes on where it stopped.
Price: a group's start (processes, imports, reading the checkpoint), each time; two processes beside the workers' (Ray's controller and
the driver). Each group is a run of Ray Train's with a fixed size, none of whose restarts is used: its controller would take a group that
left early for finished, charge a drain to the failures, and count doomed machines as good (docs/decisions/0011-groups-of-workers.md).
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from cluster.console import say
from cluster.preemption import DrainWatch
from cluster.storage import resolve
from train.checkpoint import Saved, newest
from train.elastic.machines import machines, silent
from train.elastic.size import Attempt, Crew, crew_of, fruitless, sized
from train.elastic.watch import Figures, Group, counted, news_of, watched
from train.elastic.worker import life_of_a_worker
from train.job import Ended, Job, Orders, Outcome
from train.optimize.guard import Diverged

__all__ = ["Job", "Outcome", "train_on_workers"]

_LOOK_S = 1.0
_WAITING_S = 60.0  # between two words about waiting
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon Ray's controller sees that the workers are done, or dead
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",  # then we look again at which machines there are
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # drains are our affair
}


def train_on_workers(job: Job) -> Outcome:
    """Run `job` on the attached cluster and wait for it.

    Raises ValueError for what only the workers could see to be a user's mistake, RuntimeError when they failed too often.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    with DrainWatch(announcements=True) as watch:
        return _Run(job, watch).to_the_end()


@dataclass(slots=True)
class _Run:
    """The driver's view of a job."""

    job: Job
    watch: DrainWatch
    key: bytes = field(default_factory=lambda: uuid.uuid4().hex.encode())
    attempts: list[Attempt] = field(default_factory=list)
    gone: frozenset[str] = frozenset()
    """Machines whose daemon does not answer, whatever Ray says of them."""
    figures: Figures = field(default_factory=Figures)
    asked_for: int = 0
    """Workers that the cluster's autoscaler is asked to have room for."""
    on_gpus: bool = False
    """Whether a group has had GPUs: later ones wait for them."""

    def to_the_end(self) -> Outcome:
        """Group after group."""
        try:
            while True:
                crew, saved = self._wait_for_crew(), newest(f"{self.job.folder}/checkpoints")
                ended = self._attempt(crew, saved)
                if ended is not None and ended.state is not None:
                    start = saved.state.step if saved else 0
                    return Outcome(ended.state, ended.precision, start, ended.loss_before, ended.loss_after, tuple(self.attempts))
        finally:
            self._ask_for(0)

    def _attempt(self, crew: Crew, saved: Saved | None) -> Ended | None:
        """One group of workers, to its end; None if it was broken off."""
        from ray.train import TrainingFailedError

        start = saved.state.step if saved else 0
        self.on_gpus = crew.use_gpu
        orders = Orders(
            job=self.job,
            recipe=sized(self.job.recipe, crew.num_workers, self.job.recipe.workers_per_replica),
            key=self.key,
            attempt=f"{time.time_ns() // 1_000_000:012x}",
            saved=saved,
            num_threads=max(1, int(crew.cpus)),
            save_s=self.figures.expected_save_s(crew.num_workers),
        )
        group = Group(self.job, self.key, crew.num_workers, start, lambda: self._room_for(crew), self.figures)
        ended: Ended | None = None
        try:
            with watched(group):
                ended = _trainer(orders, crew).fit().return_value
            assert ended is not None
            self.figures.note(ended, crew.num_workers)
            self._note(Attempt(crew.num_workers, start, ended.step, ended.why, ended.reason, name=orders.attempt))
        except TrainingFailedError as error:
            self._broken_off(crew, orders, error)
        return ended

    def _broken_off(self, crew: Crew, orders: Orders, error: Exception) -> None:
        """Note a group's failure. Raises when it is a user's mistake, or one too many."""
        if _found_no_room(error):
            return
        news, saved = news_of(self.key), newest(f"{self.job.folder}/checkpoints")
        cause, end = _cause(self.job, error), saved.state.step if saved else 0
        start = orders.saved.state.step if orders.saved else 0
        lost = max(0, int(news["step"]) - end) if news else 0
        self.gone = silent(crew.node_ids)
        drained = crew.node_ids & {*self.watch.nodes}
        why, reason = ("lost", _gone(self.gone | drained)) if self.gone | drained else ("failed", str(cause).split("\n")[0])
        if isinstance(cause, Diverged) or (isinstance(cause, ValueError) and news is None):
            raise cause from error
        self._note(Attempt(crew.num_workers, start, end, why, reason, lost, orders.attempt))
        if 0 <= self.job.max_failures < fruitless(self.attempts):
            raise cause from error

    def _wait_for_crew(self) -> Crew:
        """The workers of the next group, as soon as there are machines for them."""
        told, wanted = -_WAITING_S, self.job.recipe.num_workers
        least = max(self.job.min_workers, self.job.recipe.workers_per_replica)
        while (crew := self._crew()) is None:
            if time.monotonic() - told > _WAITING_S:
                told = time.monotonic()
                say(f"{self.job.label}: waiting for machines for at least {least} of {wanted} workers")
            self._ask_for(wanted)
            time.sleep(_LOOK_S)  # Ray has no event for a machine that comes
        self._ask_for(wanted if crew.num_workers < wanted else 0)
        return crew

    def _ask_for(self, num_workers: int) -> None:
        """Tell the cluster's autoscaler, if it has one, how many workers there should be room for."""
        from ray.autoscaler.sdk import request_resources

        if num_workers != self.asked_for:
            request_resources(bundles=[{"CPU": 1.0, "GPU": 1.0} if self.on_gpus else {"CPU": 1.0}] * num_workers)
            self.asked_for = num_workers

    def _crew(self) -> Crew | None:
        recipe = self.job.recipe
        there = machines(self.watch, self.gone)
        return crew_of(
            there,
            wanted=recipe.num_workers,
            least=self.job.min_workers,
            global_batch=recipe.global_batch,
            group=recipe.workers_per_replica,
            on_gpus=self.on_gpus,
        )

    def _room_for(self, crew: Crew) -> int:
        """How many workers there is room for now."""
        possible = self._crew()
        return possible.num_workers if possible else crew.num_workers

    def _note(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        if attempt.why != "finished":
            again = f", {attempt.lost} steps to be done again" if attempt.lost else ""
            say(f"{self.job.label}: {counted(attempt.num_workers)} {attempt.why} at step {attempt.end}{again}: {attempt.reason}")


def _trainer(orders: Orders, crew: Crew) -> Any:
    """Ray Train's run of one group."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    filesystem, place = resolve(f"{orders.job.folder}/ray")
    return TorchTrainer(
        life_of_a_worker,
        train_loop_config={"orders": orders},
        scaling_config=ScalingConfig(
            num_workers=crew.num_workers,
            resources_per_worker={"CPU": crew.cpus},
            use_gpu=crew.use_gpu,
            label_selector={"ray.io/node-id": f"!in({','.join(crew.left_out)})"} if crew.left_out else None,
        ),
        run_config=RunConfig(
            name=f"run-{orders.attempt}",
            storage_path=place,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _gone(node_ids: frozenset[str]) -> str:
    machines = f"machine {next(iter(node_ids))[:8]} is" if len(node_ids) == 1 else f"{len(node_ids)} machines are"
    return f"{machines} gone"


def _found_no_room(error: Exception) -> bool:
    """Whether the group never began, because others use the machines: that is no failure, and it is tried again."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def _cause(job: Job, error: Exception) -> Exception:
    """What the first worker to fail failed of: a ValueError in one line, or a RuntimeError that says which worker."""
    failures = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        cause = getattr(failure, "cause", None) or failure.__cause__ or failure
        if isinstance(cause, ValueError) and "\n" not in str(cause):
            return type(cause)(str(cause)) if isinstance(cause, Diverged) else ValueError(str(cause))
        return RuntimeError(f"{job.label}: worker {rank} failed: {failure}")
    return RuntimeError(f"{job.label}: {error}")
