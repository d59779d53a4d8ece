"""Training jobs without Ray, for tests of what is trained rather than of where."""

from __future__ import annotations

import contextlib

import pytest

from train.elastic.size import Attempt
from train.job import Job, Outcome


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """Jobs are done here and now, by the plain loop; their outcomes are noted."""
    from train.loop import held_out_loss, run
    from train.plain import PlainStepper
    from train.state import State

    outcomes: list[Outcome] = []

    def done(job: Job) -> Outcome:
        model, judged = job.build(), job.held_out() if job.held_out else None
        stepper = PlainStepper(model, job.recipe)

        def loss() -> float | None:
            return held_out_loss(stepper, judged, job.recipe.micro_batch) if judged else None

        before = loss()
        state = run(stepper, job.source(), job.recipe, state=State())
        job.export(model, stepper.weights())
        whole = Attempt(1, 0, state.step, "finished", "all steps are done")
        outcomes.append(Outcome(state, stepper.precision, 0, before, loss(), (whole,)))
        return outcomes[-1]

    monkeypatch.setattr("train.workers.train_on_workers", done)
    monkeypatch.setattr("train.compress.recover.attached", contextlib.nullcontext)
    monkeypatch.setattr("train.pretrain.attached", contextlib.nullcontext)
    return outcomes
