from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from train.corpus import Sequences
from train.elastic.pieces import Held, load, snapshot
from train.loop import held_out_loss, run
from train.plain import PlainStepper
from train.recipe import Recipe
from train.state import State

RECIPE = {"steps": 6, "global_batch": 8, "micro_batch": 4, "sequence_length": 32, "learning_rate": 1e-3, "num_workers": 1}


def stepper(folder: Path, **changes) -> PlainStepper:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return PlainStepper(model, Recipe(**RECIPE, precision="float32", **changes))


def test_training_lowers_the_loss_and_accumulation_changes_nothing(tiny_model_dir: Path, tokens_dir: Path):
    source = Sequences.open(tokens_dir)
    whole = run(stepper(tiny_model_dir), source, Recipe(**RECIPE | {"micro_batch": 8}), state=State())
    parts = run(stepper(tiny_model_dir), source, Recipe(**RECIPE | {"micro_batch": 1}), state=State())
    losses = [r.loss for r in whole.records]
    assert losses[-1] < losses[0] - 0.3
    assert [r.loss for r in parts.records] == pytest.approx(losses, rel=1e-5)
    assert [r.gradient_norm for r in parts.records] == pytest.approx([r.gradient_norm for r in whole.records], rel=1e-4)


def test_a_step_is_the_token_weighted_mean_of_its_batch(tiny_model_dir: Path, tokens_dir: Path):
    """The first reported loss is Σ nll / Σ targets over the global batch, which sequences of unequal lengths would betray."""
    source = Sequences.open(tokens_dir)
    recipe = Recipe(**RECIPE)
    from train.corpus import Cursor

    indices = Cursor(recipe.seed, recipe.global_batch, len(source)).indices()
    fresh = stepper(tiny_model_dir)
    expected = sum(fresh.nll(source.batch(np.array([i]))) for i in indices) / source.num_labels(indices)
    assert run(fresh, source, Recipe(**RECIPE | {"steps": 1}), state=State()).records[0].loss == pytest.approx(expected, rel=1e-5)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tiny_model_dir: Path, tokens_dir: Path):
    source, recipe = Sequences.open(tokens_dir), Recipe(**RECIPE, checkpoint_every=2)
    whole = run(stepper(tiny_model_dir), source, recipe, state=State())
    first, saved = stepper(tiny_model_dir), []

    def stop_after_four(state: State) -> None:
        saved.append(state)
        if state.step == 4:
            saved.append(Held(snapshot(first.pieces())))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(first, source, recipe, state=State(), checkpoint=stop_after_four)
    *states, held = saved
    assert [state.step for state in states] == [2, 4]
    second = stepper(tiny_model_dir)
    load(second.pieces(), held)
    resumed = run(second, source, recipe, state=State.from_json(states[-1].to_json()))
    assert [r.loss for r in resumed.records] == [r.loss for r in whole.records]
    for name, weight in second.weights().items():
        assert weight.isfinite().all(), name


def test_every_step_is_reported_and_the_last_is_checkpointed(tiny_model_dir: Path, tokens_dir: Path):
    seen, kept = [], []
    run(
        stepper(tiny_model_dir), Sequences.open(tokens_dir), Recipe(**RECIPE, checkpoint_every=4), state=State(),
        report=lambda record: seen.append(record.step), checkpoint=lambda state: kept.append(state.step),
    )  # fmt: skip
    assert seen == [1, 2, 3, 4, 5, 6]
    assert kept == [4, 6]


def test_held_out_loss_weighs_every_target_alike(tiny_model_dir: Path, tokens_dir: Path):
    source, model = Sequences.open(tokens_dir), stepper(tiny_model_dir)
    everything = np.arange(len(source))
    expected = model.nll(source.batch(everything)) / source.num_labels(everything)
    assert held_out_loss(model, source, 7) == pytest.approx(expected, rel=1e-6)
