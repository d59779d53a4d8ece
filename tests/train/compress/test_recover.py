"""Recovery: through Ray Train, back to the variants; it helps on prompts it has not seen, keeps zeros, and can be interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.artifact import Unmet
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from train.compress import options
from train.compress.calibrate import matrices, weight_of
from train.compress.candidates import degraded
from train.compress.compress import compress
from train.compress.config import CompressConfig
from train.compress.divergence import judge, make_reference
from train.compress.export import export
from train.compress.original import greedy
from train.compress.quantize import load_dense
from train.compress.recover import recipe_of, recover

ONE = EngineConfig(num_threads=1, dtype="float32")


def reference_of(engine, prompts, num_tokens):
    return make_reference(engine, prompts, greedy(engine, prompts, num_tokens))


def variants_of(model, name):
    linear = [matrix.name for matrix in matrices(model) if matrix.role == "linear"]
    return {matrix: degraded(weight_of(model, matrix), options.option(name), None) for matrix in linear}


def drawn(rng, number, vocab):
    return [rng.integers(4, vocab, 6).tolist() for _ in range(number)]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_an_interrupted_recovery_on_two_workers_goes_on(tiny_model_dir, tmp_path, monkeypatch):
    from train import workers

    rng, engine, model = np.random.default_rng(1), Engine.load(tiny_model_dir, ONE), load_dense(tiny_model_dir)
    lessons, judged = (reference_of(engine, drawn(rng, number, 300), 6) for number in (8, 4))
    variants, given = variants_of(model, "2:4-magnitude"), {"way": "full", "steps": 8, "folder": str(tmp_path), "num_workers": 2}
    outcomes, real = [], workers.train_on_workers
    with monkeypatch.context() as broken:

        def stopped(job: object) -> None:
            outcomes.append(real(job))
            raise KeyboardInterrupt

        broken.setattr(workers, "train_on_workers", stopped)
        with pytest.raises(KeyboardInterrupt):
            recover(tiny_model_dir, variants, lessons, judged, **given)
    monkeypatch.setattr(workers, "train_on_workers", lambda job: outcomes.append(real(job)) or outcomes[-1])
    found = recover(tiny_model_dir, variants, lessons, judged, **given)
    assert [outcome.resumed_at for outcome in outcomes] == [0, 8], "no step was done twice"
    assert found.kl_after == pytest.approx(outcomes[0].loss_after, rel=1e-5)
    assert {name: v.bytes for name, v in found.variants.items()} == {name: v.bytes for name, v in variants.items()}


@pytest.mark.parametrize(
    ("option", "way", "rate", "left"),
    [("sparse75-magnitude", "full", 3e-3, 0.95), ("2:4-magnitude", "lora", 3e-3, 0.98), ("int3-rtn", "norms", 3e-3, 0.98)],
)
def test_it_comes_closer_on_other_prompts_and_what_was_zero_is_zero(option, way, rate, left, tiny_model_dir, tmp_path, in_process):
    rng, engine, model = np.random.default_rng(0), Engine.load(tiny_model_dir, ONE), load_dense(tiny_model_dir)
    lessons, judged = (reference_of(engine, drawn(rng, number, 300), 10) for number in (48, 16))
    variants = variants_of(model, option)
    given = {"way": way, "steps": 24, "folder": str(tmp_path / "work"), "learning_rate": rate}
    found = recover(tiny_model_dir, variants, lessons, judged, **given)
    assert found.helped
    assert found.kl_after < left * found.kl_before
    for name, variant in variants.items():
        assert not found.variants[name].dense[variant.dense == 0].any()
        assert not torch.equal(found.variants[name].dense, variant.dense)
    found.apply_to(model)
    export(model, found.variants, tiny_model_dir, tmp_path / "small")
    traces = judge(Engine.load(tmp_path / "small", ONE), judged)
    kl = float(np.concatenate([trace.kl for trace in traces]).mean())
    assert kl == pytest.approx(found.kl_after, rel=0.1), "what is on disk is what was trained, but for the rounding"
    again = recover(tiny_model_dir, variants, lessons, judged, **given)
    assert len(in_process) == 1, "what is there already is not done again"
    assert all(torch.equal(again.variants[name].dense, found.variants[name].dense) for name in variants)


def test_a_batch_is_dealt_evenly():
    for workers in (1, 2, 3, 4):
        recipe = recipe_of("full", 10, 256, num_workers=workers)
        assert recipe.global_batch % (workers * recipe.micro_batch) == 0
        assert 12 <= recipe.global_batch <= 16
    assert recipe_of("norms", 10, 3).micro_batch == 3


@pytest.mark.slow
@pytest.mark.parametrize("way", ["norms", "lora", "full"])
def test_tiny_code_recovers_on_prompts_it_has_not_seen(way, models_dir, data_dir, tmp_path, in_process):
    import gzip

    from serve.engine.text import Tokenizer

    source = Path(models_dir) / "tiny-code"
    engine, tokenizer = Engine.load(source, ONE), Tokenizer(source)
    with gzip.open(data_dir / "code/HumanEval.jsonl.gz", "rt") as lines:
        prompts = [tokenizer.encode(json.loads(line)["prompt"])[:48] for line in lines]
    lessons, judged = reference_of(engine, prompts[:48], 24), reference_of(engine, prompts[48:64], 24)
    variants = variants_of(load_dense(source), "sparse50-magnitude")
    found = recover(source, variants, lessons, judged, way=way, steps=20, folder=str(tmp_path))
    assert found.kl_after < (0.95 if way == "norms" else 0.7) * found.kl_before


@pytest.mark.parametrize("fields", [{"options": "sparse50-magnitude"}, {"options": "int4-rtn,int3", "budget": ("flips=0.3",)}])
def test_the_verb_recovers_and_certifies_what_it_wrote(fields, tiny_model_dir, tmp_path, in_process):
    rng = np.random.default_rng(2)
    words = ["def", "add", "left", "right", "return", "for", "index", "in", "range", "tern", "flies", "pole", "year", "life", "print"]
    prompts = {" ".join(rng.choice(words, 5)) for _ in range(80)}
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in sorted(prompts)))
    config = CompressConfig(
        model=str(tiny_model_dir), output=str(tmp_path / "out"), prompts=str(tmp_path / "prompts.jsonl"), completion_tokens=12,
        num_prompts=16, search_prompts=16, calibration_prompts=8, recover="full", recover_steps=10, recover_prompts=32,
        engine=EngineConfig(num_threads=1), **fields,
    )  # fmt: skip
    try:
        made = compress(config)
    except Unmet as short:
        made = short.best
    report = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert not (tmp_path / "out" / "recover").exists(), "checkpoints are not published"
    assert made.manifest.metrics["recovery"] == report["recovery"]
    if not fields.get("budget"):
        recovery = report["recovery"]
        assert (recovery["way"], recovery["steps"]) == ("full", 10)
        assert recovery["kl_after"] < recovery["kl_before"]
        assert report["certificate"]["kl_mean"] == pytest.approx(recovery["kl_after"], rel=0.7), "other prompts of the same kind"


@pytest.mark.parametrize("name", ["recover_steps", "recover_prompts", "recover_workers"])
def test_settings_that_cannot_work_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: must be at least 1, not 0"):
        CompressConfig(model="m", prompts="p", **{name: 0})
