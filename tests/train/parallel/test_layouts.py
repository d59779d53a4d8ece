"""Tensor, pipeline and sequence parallelism on two processes against one process of plain torch, with and without tied embeddings."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from train.architectures import make_config, make_model
from train.corpus import Sequences
from train.elastic.pieces import Held, Piece, load, snapshot
from train.loop import held_out_loss, run
from train.parallel.pipeline import PipelineSplit
from train.parallel.sequence import SequenceLoss
from train.parallel.tensor import TensorSplit, layer_specs, stretches
from train.plain import PlainStepper
from train.plan.shapes import ModelShape, shape_of_width
from train.recipe import Recipe
from train.state import State

_SPEC = importlib.util.spec_from_file_location("processes", Path(__file__).with_name("processes.py"))
assert _SPEC is not None
processes = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(processes)  # type: ignore[union-attr]

STEPS, STOP = 5, 3
RECIPE: dict[str, Any] = {
    "steps": STEPS, "global_batch": 8, "micro_batch": 2, "sequence_length": 32, "learning_rate": 1e-2, "clip": 0.5, "z_loss": 1e-4,
    "precision": "float32", "guard": 0.0,
}  # fmt: skip
LAYOUTS: dict[str, dict[str, Any]] = {
    "pipeline": {"pipeline": 2, "zero_stage": 0},
    "sequence": {"sequence": 2, "zero_stage": 0},
    "sequence-zero3": {"sequence": 2, "zero_stage": 3},
    "tensor": {"tensor": 2, "zero_stage": 0},
}
TOGETHER = (("pipeline",), ("sequence", "sequence-zero3", "tensor"))
"""DeepSpeed remembers its groups for the rest of a process: a pipeline is the first that it hears of, tensor parts are the last."""
MODELS = {"dense-tied": ("dense", True), "sliding-untied": ("sliding", False)}


def shape_of(architecture: Any, tied: bool) -> ModelShape:
    table = shape_of_width(64, vocab_size=400, max_length=32, architecture=architecture).table()
    table |= {"num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "tie_embeddings": tied}
    return ModelShape.from_table(table | ({"window": 9} if architecture == "sliding" else {}))


_WORKER = f"""
import json, sys
import torch, torch.distributed
tokens_dir, folder, out = sys.argv[1:4]
from pathlib import Path
from train.architectures import make_config, make_model
from train.checkpoint import Checkpoints, newest, restore
from train.corpus import Sequences
from train.loop import held_out_loss, run
from train.plan.shapes import ModelShape
from train.recipe import Recipe
from train.state import State
from train.steppers import make_stepper

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
source, found = Sequences.open(Path(tokens_dir)), {{}}
models, layouts = json.loads(Path(folder, "cases.json").read_text())
for layout, options in layouts.items():
    for kind, table in models.items():
        recipe = Recipe(**{RECIPE!r} | options)
        fresh = lambda: make_stepper(make_model(make_config(ModelShape.from_table(table)), seed=3), recipe)
        stepper, judged = fresh(), []
        place = f"{{folder}}/{{kind}}-{{layout}}"
        checkpoints = Checkpoints(place, stepper, "first")
        before = held_out_loss(stepper, source, 4)
        def keep(state):
            if state.step == {STOP}:
                checkpoints.save(state)
                checkpoints.settle()
                stepper.barrier()
        state = run(stepper, source, Recipe(**{RECIPE!r} | options | {{"checkpoint_every": 1}}), state=State(), checkpoint=keep)
        after, weights = held_out_loss(stepper, source, 4), stepper.weights()
        other = fresh()
        again = run(other, source, recipe, state=restore(newest(place), other))
        other.remember()
        kept = {{name: weight.clone() for name, weight in other.weights().items()}}
        other.step([source.batch(torch.arange(2).numpy())] * recipe.micro_steps, 100, 0.1)
        other.go_back()
        returned = other.weights()
        if stepper.rank == 0:
            torch.save(weights, f"{{place}}.pt")
            found[f"{{kind}} {{layout}}"] = {{
                "before": before, "after": after, "replicas": stepper.num_replicas,
                "losses": [r.loss for r in state.records], "norms": [r.gradient_norm for r in state.records],
                "again": [r.loss for r in again.records],
                "went_back": all(torch.equal(kept[name], returned[name]) for name in kept),
            }}
if torch.distributed.get_rank() == 0:
    Path(out).write_text(json.dumps(found))
torch.distributed.barrier()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def runs(folder: Path, tokens_dir: Path) -> dict[str, Any]:
    import json

    models, found = {kind: shape_of(*of).table() for kind, of in MODELS.items()}, {}
    for names in TOGETHER:
        (folder / "cases.json").write_text(json.dumps([models, {name: LAYOUTS[name] for name in names}]))
        found |= processes.run_workers(_WORKER, folder, tokens_dir, folder)
    return found


@pytest.fixture(scope="module")
def plain(tokens_dir: Path) -> dict[str, dict[str, Any]]:
    source, found = Sequences.open(tokens_dir), {}
    for kind, of in MODELS.items():
        recipe = Recipe(**RECIPE | {"num_workers": 1})
        stepper = PlainStepper(make_model(make_config(shape_of(*of)), seed=3), recipe)
        before = held_out_loss(stepper, source, 4)
        state = run(stepper, source, recipe, state=State())
        found[kind] = {
            "before": before,
            "losses": [r.loss for r in state.records],
            "norms": [r.gradient_norm for r in state.records],
            "after": held_out_loss(stepper, source, 4),
            "weights": stepper.weights(),
        }
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", MODELS)
def test_every_layout_takes_the_steps_of_one_process(runs, plain, folder, kind, layout):
    found, expected = runs[f"{kind} {layout}"], plain[kind]
    assert found["replicas"] == 1
    assert found["before"] == pytest.approx(expected["before"], rel=1e-5)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-3)
    assert found["after"] == pytest.approx(expected["after"], rel=1e-4)
    weights = torch.load(folder / f"{kind}-{layout}.pt")
    assert set(weights) == set(expected["weights"])
    for name, weight in expected["weights"].items():
        assert weights[name].shape == weight.shape
        assert float((weights[name] - weight).norm()) <= 2e-2 * float(weight.norm()), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_restored_run_continues_the_curve_and_a_step_can_be_undone(runs, kind, layout):
    found = runs[f"{kind} {layout}"]
    assert found["again"] == pytest.approx(found["losses"], rel=1e-6)
    assert found["went_back"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_worker_reads_what_a_layout_wrote(runs, folder, tokens_dir, layout):
    from train.checkpoint import newest, restore

    kind = "dense-tied"
    recipe = Recipe(**RECIPE | {"num_workers": 1})
    stepper = PlainStepper(make_model(make_config(shape_of(*MODELS[kind])), seed=9), recipe)
    state = restore(newest(f"{folder}/{kind}-{layout}"), stepper)
    assert state.step == STOP
    again = run(stepper, Sequences.open(tokens_dir), recipe, state=state)
    assert [r.loss for r in again.records] == pytest.approx(runs[f"{kind} {layout}"]["losses"], rel=1e-4)


def model_of(architecture: Any, **changes: Any) -> Any:
    shape = shape_of_width(64, vocab_size=90, max_length=32, architecture=architecture)
    return make_model(make_config(ModelShape.from_table(shape.table() | changes)))


@pytest.mark.parametrize("architecture", ["alibi", "moe", "ssm", "hybrid", "linear"])
def test_what_cannot_be_split_is_refused_in_one_line(architecture):
    model, recipe = model_of(architecture), Recipe(**RECIPE | LAYOUTS["tensor"])
    for make in (lambda: TensorSplit(model, recipe, None), lambda: PipelineSplit(model, recipe, None), lambda: SequenceLoss(model, 2)):
        with pytest.raises(ValueError, match=r"^(tensor|pipeline|sequence): ") as caught:
            make()
        assert "\n" not in str(caught.value)


def test_numbers_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="num_key_value_heads 1 cannot be shared among 2"):
        layer_specs(model_of("dense", num_kv_heads=1), 2)
    with pytest.raises(ValueError, match="2 layers cannot be dealt to 3"):
        PipelineSplit(model_of("dense"), Recipe(**RECIPE | {"pipeline": 3, "num_workers": 3, "zero_stage": 0}), None)
    with pytest.raises(ValueError, match="2 attention heads cannot be shared among 4"):
        SequenceLoss(model_of("dense"), 4)
    for changes, message in [
        ({"tensor": 2}, "needs zero_stage 0"),
        ({"tensor": 2, "sequence": 2, "zero_stage": 0}, "cannot be combined"),
        ({"sequence": 3}, "2 workers do not make groups of 3"),
        ({"sequence": 2, "sequence_length": 31}, "cannot split 31 tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            Recipe(**RECIPE | changes)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_piece_of_a_cut_matrix_is_where_it_says(dim: int, size: int):
    """The parts of a matrix read back as the whole, and go where they were."""
    whole = torch.arange(36.0).view(6, 6)
    parts = [part.clone() for part in whole.chunk(size, dim=dim)]
    pieces = [
        Piece("w", start, count, part, offset, {})
        for index, part in enumerate(parts)
        for start, count, offset in stretches(part.shape, dim, index, size)
    ]
    written = snapshot(pieces)
    flat = torch.full((36,), np.nan)
    for fragment in written:
        flat[fragment.start : fragment.start + len(fragment.values)] = fragment.values
    assert torch.equal(flat.view(6, 6), whole)
    for part in parts:
        part.zero_()
    load(pieces, Held(written))
    assert torch.equal(torch.cat(parts, dim=dim), whole)
