"""What a recovery learns on: every completion's tokens and nothing else, with the original's word at the right place."""

from __future__ import annotations

import numpy as np
import torch

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from train.compress.distil_loss import DistilLoss
from train.compress.divergence import judge, make_reference
from train.compress.lessons import Lessons
from train.compress.quantize import load_dense
from train.corpus import IGNORED

PROMPTS, COMPLETIONS = [[4, 9, 17], [30, 5], [7, 8, 60, 9]], [[11, 4], [6, 17, 30, 9], [5]]


def reference_of(folder, top=512):
    engine = Engine.load(folder, EngineConfig(num_threads=1, dtype="float32"))
    return engine, make_reference(engine, PROMPTS, COMPLETIONS, top=top)


def test_targets_are_the_completions_and_bring_the_originals_word(tiny_model_dir, tmp_path):
    _, reference = reference_of(tiny_model_dir, top=7)
    Lessons.of(reference).save(tmp_path)
    lessons = Lessons.open(tmp_path)
    assert len(lessons) == 3
    assert lessons.num_labels(np.array([2, 0])) == 3
    batch = lessons.batch(np.array([1, 0]))
    assert batch.labels[batch.labels != IGNORED].tolist() == [*COMPLETIONS[1], *COMPLETIONS[0]]
    assert batch.input_ids.shape == (2, 5), "no column that nothing reads"
    expected = np.concatenate([reference.top_ids[1], reference.top_ids[0]])
    assert torch.equal(batch.top_ids, torch.from_numpy(expected.astype(np.int64)))
    moved = batch.to(torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(moved.tensors, batch.tensors, strict=True))


def test_the_loss_of_a_lesson_is_the_judges_kl(tiny_model_dir, tmp_path):
    """Of another model than the reference's: 50 tokens kept, the rest one bucket."""
    _, reference = reference_of(tiny_model_dir, top=50)
    other = load_dense(tiny_model_dir, torch.float32)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(3.0)
    other.save_pretrained(tmp_path)
    for file in tiny_model_dir.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    traces = judge(Engine.load(tmp_path, EngineConfig(num_threads=1, dtype="float32")), reference)
    lessons = Lessons.of(reference)
    with torch.no_grad():
        found = float(DistilLoss(other.eval())(*lessons.batch(np.arange(3)).tensors))
    total = sum(float(trace.kl.sum()) for trace in traces)
    assert total > 1e-4
    np.testing.assert_allclose(found, total, rtol=1e-3)
