"""One training job on Ray Train: the loop on N workers, with progress on the driver and restarts from checkpoints.

Promise: a job is restarted from its newest whole checkpoint when a worker fails, and when the same verb is run again
after an interruption. Price: two processes beside the workers' (Ray's controller and the driver). What a job trains is
three picklable callables, so pretrain and tune, and later ways of tuning, share this file and the loop.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.experimental import internal_kv

from cluster.console import progress, say
from cluster.storage import resolve
from train.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from train.corpus import Sequences
    from train.loop import State

__all__ = ["Job", "Outcome", "train_on_workers"]

_POLL_S = 0.5
_SLOW_START_S = 60.0
_NAMESPACE = b"sterna-train"
_CONTROLLER = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}  # how soon Ray's controller sees that the workers are done, or dead


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the workers do. The callables run on every worker and must be picklable (module-level functions, partials)."""

    label: str
    """What the progress bar is called."""
    recipe: Recipe
    folder: str
    """Folder, local or s3://, that all workers can write: its `checkpoints` and Ray Train's own records (`ray`) go there."""
    build: Callable[[], PreTrainedModel]
    """The model at step 0, equal on every worker."""
    source: Callable[[], Sequences]
    """What to train on."""
    export: Callable[[PreTrainedModel, dict[str, Tensor]], None]
    """Writes the result from the whole weights; runs on worker 0."""
    held_out: Callable[[], Sequences] | None = None
    """What to measure the loss on before and after."""
    max_failures: int = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished job knows of itself."""

    state: State
    precision: str
    resumed_at: int
    """The step of the checkpoint that the last start went on from; 0 for an undisturbed run."""
    loss_before: float | None = None
    loss_after: float | None = None


def train_on_workers(job: Job) -> Outcome:
    """Run `job` on the attached cluster and wait for it.

    Raises ValueError for what only the workers could see to be a user's mistake, RuntimeError when they failed too often.
    """
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    for name, value in _CONTROLLER.items():
        os.environ.setdefault(name, value)
    cpus, use_gpu = _share_of_cluster(job.recipe.num_workers)
    filesystem, place = resolve(f"{job.folder}/ray")
    key = uuid.uuid4().hex.encode()
    trainer = TorchTrainer(
        _on_worker,
        train_loop_config={"job": job, "key": key, "num_threads": max(1, int(cpus))},
        scaling_config=ScalingConfig(num_workers=job.recipe.num_workers, resources_per_worker={"CPU": cpus}, use_gpu=use_gpu),
        run_config=RunConfig(
            name=f"run-{key.decode()}",
            storage_path=place,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=job.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    with _watched(job, key):
        try:
            return trainer.fit().return_value
        except TrainingFailedError as error:
            raise _first_failure(job, error) from error
        finally:
            internal_kv._internal_kv_del(key, namespace=_NAMESPACE)


def _on_worker(config: dict[str, Any]) -> Outcome:
    """The life of one worker; its return value counts on rank 0."""
    import ray.train
    import torch

    from train.checkpoint import newest, restore, save
    from train.loop import State, held_out_loss, run
    from train.sharded import ShardedStepper

    job: Job = config["job"]
    recipe, checkpoints = job.recipe, f"{job.folder}/checkpoints"
    torch.set_num_threads(config["num_threads"])
    device = ray.train.torch.get_device()
    saved = newest(checkpoints)
    if saved:
        recipe = replace(recipe, precision=saved.precision)
    model = job.build()
    stepper = ShardedStepper(model, recipe, device)
    held_out = job.held_out() if job.held_out else None
    before = held_out_loss(stepper, held_out, recipe.micro_batch) if held_out else None
    state = restore(saved, stepper) if saved else State()

    def checkpoint(now: State) -> None:
        save(checkpoints, stepper, now)
        ray.train.report({"step": now.step, "loss": now.records[-1].loss})

    done = run(stepper, job.source(), recipe, state=state, report=_reporter(config["key"], stepper.rank), checkpoint=checkpoint)
    after = held_out_loss(stepper, held_out, recipe.micro_batch) if held_out else None
    weights = stepper.weights()
    if stepper.rank == 0:
        job.export(model, weights)
    stepper.barrier()
    return Outcome(done, stepper.precision, state.step, before, after)


def _reporter(key: bytes, rank: int) -> Callable[..., None]:
    """Tells the driver of each step through the cluster's key-value store; only worker 0 speaks."""

    def report(record: Any) -> None:
        if rank == 0:
            news = {"step": record.step, "loss": record.loss, "rate": record.tokens / max(record.seconds, 1e-9)}
            internal_kv._internal_kv_put(key, json.dumps(news).encode(), overwrite=True, namespace=_NAMESPACE)

    return report


@contextmanager
def _watched(job: Job, key: bytes) -> Iterator[None]:
    """Show the job's progress while the block runs."""
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(job, key, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _watch(job: Job, key: bytes, stop: threading.Event) -> None:
    say(f"{job.label}: starting {job.recipe.num_workers} workers")
    waited_s = 0.0
    while (news := _news(key)) is None:
        if stop.wait(_POLL_S):
            return
        waited_s += _POLL_S
        if waited_s == _SLOW_START_S:
            say(f"{job.label}: still waiting for {job.recipe.num_workers} workers; is the cluster busy?")
    seen = news["step"] - 1  # a resumed run's bar starts where the run does
    with progress(job.label, job.recipe.steps - seen, "steps") as advance:
        while True:
            last = stop.wait(_POLL_S)
            news = _news(key) or news
            if news["step"] > seen:
                advance(news["step"] - seen, f"loss {news['loss']:.3f}  {news['rate']:,.0f} tokens/s")
                seen = news["step"]
            if last:
                return


def _news(key: bytes) -> dict[str, Any] | None:
    raw = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
    return json.loads(raw) if raw else None


def _share_of_cluster(num_workers: int) -> tuple[float, bool]:
    """(CPUs for each worker, whether each gets a GPU): the smallest machine's CPUs over the workers that it may have to hold,
    on machines with GPUs where there are enough for all: one worker a GPU."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    if not nodes:
        return 1.0, False  # a cluster that scales up from nothing
    with_gpu = [node for node in nodes if node.get("GPU", 0) > 0]
    if sum(node["GPU"] for node in with_gpu) >= num_workers:
        most = max(1, min(int(node["GPU"]) for node in with_gpu))
        return float(max(1, int(min(node["CPU"] for node in with_gpu) / most))), True
    on_one = -(-num_workers // len(nodes))
    share = min(node["CPU"] for node in nodes) / on_one
    return (float(int(share)) if share >= 1 else share), False


def _first_failure(job: Job, error: Exception) -> Exception:
    failures = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        cause = getattr(failure, "cause", None) or failure.__cause__ or failure
        if isinstance(cause, ValueError) and "\n" not in str(cause):
            return ValueError(str(cause))
        return RuntimeError(f"{job.label}: worker {rank} failed: {failure}")
    return RuntimeError(f"{job.label}: {error}")
