"""A job on Ray Train's workers, one of which dies."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from cluster.artifact import open_artifact
from train.config import Recipe
from train.corpus import Sequences
from train.pretrain import _build, _read_plan
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
