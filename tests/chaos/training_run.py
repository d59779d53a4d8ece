"""A training run on a cluster of its own on this machine, whose machines are drained, killed and replaced while it trains.

Run in a process of its own; prints one line of JSON: what happened, and what every worker was given to read. The head has no CPUs, so
every worker is on a machine that may go. Events come at given steps, as the workers' own notes on storage show them.

    python -m tests.chaos.training_run FOLDER '[["drain", 40], ["come", 70], ["kill", 110]]' [--steps 200] [--workers 2] [--machines 2]
"""

from __future__ import annotations

import argparse
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.cluster_utils import Cluster
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cluster.preemption import drain
from pipelines.drill import Fleet
from train.corpus import Cursor, Sequences
from train.job import Job, Outcome
from train.recipe import Recipe
from train.workers import train_on_workers

NOTICE_S = 10.0
LENGTH, VOCABULARY, NUM_SEQUENCES = 32, 256, 500  # 500: no multiple of the batch, so steps straddle epochs


class Noted(Sequences):
    """Sequences that note on storage which of them each worker takes: one line a micro-batch, one file a worker of a group."""

    folder: Path

    def batch(self, indices: np.ndarray) -> Any:
        context = ray.train.get_context()
        name = f"{context.get_experiment_name()}-{context.get_world_size()}-{context.get_world_rank()}"
        if not (self.folder / name).exists():
            (self.folder.parent / "nodes" / name).write_text(ray.get_runtime_context().get_node_id())
        with (self.folder / name).open("a") as file:
            file.write(" ".join(map(str, indices.tolist())) + "\n")
        return super().batch(indices)


def text() -> Sequences:
    """Tokens with something to learn: each sequence counts up from somewhere, in steps of its own."""
    rng = np.random.default_rng(0)
    first, stride = rng.integers(0, VOCABULARY, (NUM_SEQUENCES, 1)), rng.integers(1, 8, (NUM_SEQUENCES, 1))
    tokens = ((first + stride * np.arange(LENGTH)) % VOCABULARY).astype(np.uint16)
    return Sequences([tokens], [np.ones_like(tokens)])


def source(folder: Path) -> Sequences:
    """`text`, with notes."""
    made = text()
    noted = Noted(made._tokens, made._segments)
    noted.folder = folder
    return noted


def build() -> PreTrainedModel:
    """A Llama of two layers."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=64, tie_word_embeddings=True, **shape))


def keep(folder: Path, model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Export for a run that only wants to know its losses."""
    torch.save(weights, folder / "weights.pt")


def recipe_of(steps: int, num_workers: int, zero_stage: int, checkpoint_every: int) -> Recipe:
    """A global batch that 1, 2 and 3 workers share evenly."""
    return Recipe(
        steps=steps, global_batch=12, micro_batch=2, sequence_length=LENGTH, learning_rate=3e-3, warmup_steps=10, guard=0.0,
        num_workers=num_workers, zero_stage=zero_stage, precision="float32", checkpoint_every=checkpoint_every,
    )  # fmt: skip


@contextmanager
def machines_of(count: int) -> Iterator[Fleet]:
    """A head without CPUs and `count` machines of one CPU; this process is the driver."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        fleet = Fleet(cluster)
        for _ in range(count):
            fleet.add("spot")
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield fleet
    finally:
        ray.shutdown()
        cluster.shutdown()


def group_at_work(notes: Path, global_batch: int) -> tuple[str, int]:
    """The newest group of workers and the steps that all of it has read the data for."""
    names = sorted(path.name.rsplit("-", 1)[0] for path in notes.iterdir())
    if not names:
        return "", 0
    world = int(names[-1].rsplit("-", 1)[1])
    taken = [len(path.read_text().split()) for path in notes.glob(f"{names[-1]}-*")]
    return names[-1], min(taken) * world // global_batch if len(taken) == world else 0


class Events:
    """Strikes at the machines: each once the group at work is another than at the last strike and has done so many steps."""

    def __init__(self, fleet: Fleet, notes: Path, plan: Sequence[tuple[str, int]], global_batch: int) -> None:
        self._fleet, self._notes, self._plan, self._global_batch = fleet, notes, plan, global_batch
        self._ends: list[threading.Timer] = []
        self.happened: list[dict[str, Any]] = []

    def happen(self, over: threading.Event) -> None:
        """All of them, or as many as come before `over`. In the main thread: Ray starts nodes nowhere else."""
        before = ""
        for kind, after in self._plan:
            while True:
                group, steps = group_at_work(self._notes, self._global_batch)
                if group != before and steps >= after:
                    break
                if over.wait(0.05):  # files tell nobody that they have grown
                    return
            before = group
            victim = next(name for name, life in self._fleet.lives.items() if len(life) == 1)
            node = self._fleet.nodes[victim].node_id
            self.happened.append({"kind": kind, "group": group, "steps": steps, "node": node, "at_s": time.time()})
            self._strike(kind, victim)

    def cancel(self) -> None:
        """No more ends of drained machines: the run is over."""
        for end in self._ends:
            end.cancel()

    def _strike(self, kind: str, victim: str) -> None:
        """come: a machine more; drain: one less, with notice; kill: without; swap: drain, and another comes."""
        if kind in ("drain", "swap"):
            drain(self._fleet.nodes[victim].node_id, "chaos", NOTICE_S)
            self._fleet.lives[victim].append(time.time() + NOTICE_S)
            self._ends.append(threading.Timer(NOTICE_S, self._fleet.kill, [victim]))
            self._ends[-1].start()
        if kind == "kill":
            self._fleet.kill(victim)
        if kind in ("come", "swap"):
            self._fleet.add("spot")


def consumed(notes: Path, attempts: Sequence[dict[str, Any]], global_batch: int) -> tuple[list[int], list[int]]:
    """(the sequences of the committed history in order, the steps that each attempt did), from the workers' notes."""
    taken: list[int] = []
    done: list[int] = []
    for attempt in attempts:
        world = attempt["num_workers"]
        share = global_batch // world
        files = [notes / f"run-{attempt['name']}-{world}-{rank}" for rank in range(world)]
        ranks = [[int(n) for n in file.read_text().split()] if file.exists() else [] for file in files]
        done.append(min(len(rank) // share for rank in ranks))
        for step in range(attempt["end"] - attempt["start"]):
            taken += [number for rank in ranks for number in rank[step * share : (step + 1) * share]]
    return taken, done


def nodes_of(folder: Path, attempt: dict[str, Any]) -> list[str]:
    """The machines that a group's workers were on."""
    return [file.read_text() for file in sorted((folder / "nodes").glob(f"run-{attempt['name']}-*"))]


def undisturbed(recipe: Recipe) -> list[float]:
    """The losses of one process of plain torch."""
    from train.loop import run
    from train.plain import PlainStepper
    from train.state import State

    alone = replace(recipe, num_workers=1, micro_batch=12, zero_stage=0)
    return [record.loss for record in run(PlainStepper(build(), alone), text(), alone, state=State()).records]


def main() -> None:
    """Train under the plan's events, and print what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("plan", type=json.loads)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--every", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    notes = args.folder / "notes"
    notes.mkdir(parents=True)
    (args.folder / "nodes").mkdir()
    recipe = recipe_of(args.steps, args.workers, args.stage, args.every)
    job = Job(
        label="chaos", recipe=recipe, folder=str(args.folder), build=build, source=partial(source, notes),
        export=partial(keep, args.folder), growth="always",
    )  # fmt: skip
    began = time.time()
    with machines_of(args.machines) as fleet, ThreadPoolExecutor(1) as pool:
        events, over = Events(fleet, notes, args.plan, recipe.global_batch), threading.Event()
        training = pool.submit(train_on_workers, job)
        training.add_done_callback(lambda _: over.set())
        events.happen(over)
        outcome: Outcome = training.result()
        events.cancel()
    took = time.time() - began
    attempts = [asdict(attempt) for attempt in outcome.attempts]
    taken, done = consumed(notes, attempts, recipe.global_batch)
    cursor = Cursor(recipe.seed, recipe.global_batch, NUM_SEQUENCES)
    expected = np.concatenate([replace(cursor, step=step).indices() for step in range(recipe.steps)]).tolist()
    found = {
        "attempts": [{**a, "done": number, "nodes": nodes_of(args.folder, a)} for a, number in zip(attempts, done, strict=True)],
        "events": events.happened,
        "same_data": taken == expected,
        "steps": [record.step for record in outcome.state.records],
        "losses": [record.loss for record in outcome.state.records],
        "undisturbed": undisturbed(recipe),
        "took_s": took,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    from tests.chaos import training_run  # so that what is pickled is found by its name on the workers

    training_run.main()
