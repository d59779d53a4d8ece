"""A job on Ray Train's workers, one of which dies."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray.train
import torch

from cluster.artifact import open_artifact
from train.corpus import Sequences
from train.pretrain import _build, _read_plan
from train.recipe import Recipe
from train.workers import Job, train_on_workers


class DiesOnce(Sequences):
    """Sequences whose first reader, once it has read enough, is gone without a word."""

    marker: Path

    def batch(self, indices):
        self.reads = getattr(self, "reads", 0) + 1
        if self.reads > 9 and not self.marker.exists():  # two micro-batches a step and worker: in the fifth step
            self.marker.touch()
            os._exit(1)
        return super().batch(indices)


def dying_source(tokens_dir: Path, marker: Path) -> Sequences:
    source = DiesOnce.open(tokens_dir)
    source.marker = marker
    return source


def keep(folder: Path, model, weights) -> None:
    torch.save(weights, folder / "weights.pt")


@pytest.mark.usefixtures("ray_session")
def test_a_worker_that_dies_costs_no_more_than_the_steps_since_the_checkpoint(
    tmp_path: Path, plan_file: Path, tokens_dir: Path, plain_losses: list[float]
):
    plan, _ = _read_plan(str(plan_file))
    recipe = Recipe(**{k: v for k, v in plan["train"].items() if k != "tokens"})
    job = Job(
        label="test",
        recipe=recipe,
        folder=str(tmp_path),
        build=partial(_build, plan["model"], open_artifact(str(tokens_dir), made_by="tokenize"), recipe.seed),
        source=partial(dying_source, tokens_dir, tmp_path / "died"),
        export=partial(keep, tmp_path),
        max_failures=1,
    )
    outcome = train_on_workers(job)
    assert (tmp_path / "died").exists()
    assert outcome.resumed_at == 3
    assert [r.step for r in outcome.state.records] == [1, 2, 3, 4, 5, 6]
    assert [r.loss for r in outcome.state.records] == pytest.approx(plain_losses, rel=1e-4)


class Remembers(Sequences):
    """Sequences that note on storage which of them each worker takes, in which order."""

    folder: Path

    def batch(self, indices):
        rank = ray.train.get_context().get_world_rank()
        with (self.folder / f"{ray.train.get_context().get_world_size()}-{rank}").open("a") as file:
            file.write(" ".join(map(str, indices.tolist())) + "\n")
        return super().batch(indices)


def remembering_source(tokens_dir: Path, folder: Path) -> Sequences:
    source = Remembers.open(tokens_dir)
    source.index = np.random.default_rng(7).permutation(len(source))
    source.folder = folder
    return source


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_an_order_is_consumed_as_it_is_on_two_workers_and_after_an_interruption(tmp_path: Path, plan_file: Path, tokens_dir: Path):
    plan, _ = _read_plan(str(plan_file))
    table = {k: v for k, v in plan["train"].items() if k != "tokens"}
    seen = tmp_path / "seen"
    seen.mkdir()
    for steps in (3, 6):
        recipe = Recipe(**table | {"num_workers": 2, "steps": steps})
        job = Job(
            label="test",
            recipe=recipe,
            folder=str(tmp_path),
            build=partial(_build, plan["model"], open_artifact(str(tokens_dir), made_by="tokenize"), recipe.seed),
            source=partial(remembering_source, tokens_dir, seen),
            export=partial(keep, tmp_path),
        )
        outcome = train_on_workers(job)
    assert outcome.resumed_at == 3
    taken = {rank: [list(map(int, line.split())) for line in (seen / f"2-{rank}").read_text().splitlines()] for rank in (0, 1)}
    parts = [taken[rank][2 * step + part] for step in range(6) for rank in (0, 1) for part in (0, 1)]  # two micro-batches of two a step
    assert [number for part in parts for number in part] == remembering_source(tokens_dir, seen).index[:48].tolist()
