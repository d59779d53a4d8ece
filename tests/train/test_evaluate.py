from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cluster.artifact import publish
from train.config import EvaluateConfig
from train.evaluate import _bounded, _model_digest, _slices, evaluate
from train.held_out import Document, read_documents
from train.model_folder import open_model


@pytest.mark.usefixtures("ray_session")
def test_models_are_compared_on_held_out_text(tmp_path: Path, tiny_model_dir: Path, tokens_dir: Path, models_dir: Path):
    config = EvaluateConfig(
        models=(f"random={tiny_model_dir}", str(models_dir / "tiny-code")), data=(str(tokens_dir),), output=str(tmp_path / "scores")
    )
    made = evaluate(config)
    values = made.manifest.metrics["by_kind"]
    assert set(values) == {"random", "tiny-code"}
    assert set(values["random"]) == {"all", "code", "prose"}
    assert values["tiny-code"]["all"] < 3 < values["random"]["all"]
    documents, _ = read_documents([str(tokens_dir)])
    assert made.manifest.counts["bytes"] == sum(len(d.text.encode()) for d in documents)
    assert made.manifest.headline == f"bits per byte: random {values['random']['all']:.3f}, tiny-code {values['tiny-code']['all']:.3f}"
    assert {f["kind"] for f in made.manifest.figures.values()} == {"bars", "table"}
    assert evaluate(config).digest == made.digest


@pytest.mark.usefixtures("ray_session")
def test_questions_and_an_adapter_beside_its_model(tmp_path: Path, models_dir: Path, tokens_dir: Path):
    import torch
    from transformers import AutoModelForCausalLM

    from train.tuning.config import TuneConfig
    from train.tuning.methods import METHODS, attach

    base = models_dir / "tiny-code"
    config = TuneConfig(model=str(base), data=("d",), output="o", method="prompt", virtual_tokens=4)
    tuned = attach(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config, 1)
    METHODS["prompt"].write(tuned, tmp_path / "prompted")
    lines = [
        {"prompt": f"for {name} in range({n}):\n    print(", "choices": [name, "while"], "answer": 0}
        for n in range(3)
        for name in ("i", "index")
    ]
    (tmp_path / "python.jsonl").write_text("\n".join([*map(json.dumps, lines), "{"]))
    made = evaluate(EvaluateConfig(
        models=(f"plain={base}", f"{base}+{tmp_path / 'prompted'}"), data=(str(tokens_dir),), tasks=(str(tmp_path / "python.jsonl"),),
        output=str(tmp_path / "out"),
    ))  # fmt: skip
    found = made.manifest.metrics["accuracy"]
    assert set(found) == {"plain", "prompted"} == set(made.manifest.metrics["bits_per_byte"])
    assert found["plain"]["python"]["share"] == 1.0
    assert (made.manifest.counts["questions.python"], made.manifest.counts["unusable.python"]) == (6, 1)
    assert "python: plain 100%, prompted" in made.manifest.headline
    assert {"accuracy", "questions", "table"} <= set(made.manifest.figures)


@pytest.mark.usefixtures("ray_session")
def test_a_model_that_transformers_does_not_know_is_one_line(tmp_path: Path, tiny_model_dir: Path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "odd")
    (folder / "config.json").write_text('{"model_type": "no-such-family"}')
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(ValueError, match="not a causal language model") as caught:
        evaluate(EvaluateConfig(models=(str(folder),), data=(str(tmp_path / "text.txt"),), output=str(tmp_path / "out")))
    assert "\n" not in str(caught.value)


def test_slices_and_bounds_keep_documents_whole():
    documents = [Document("é" * n, "prose") for n in range(1, 30)]
    parts = _slices(documents, 4)
    assert sorted(len(d.text) for part in parts for d in part) == list(range(1, 30))
    assert max(sum(d.num_bytes for d in part) for part in parts) < 1.1 * min(sum(d.num_bytes for d in part) for part in parts)
    assert len(_slices(documents[:2], 4)) == 2
    assert sum(d.num_bytes for d in _bounded(documents, 100)) <= 100
    assert _bounded(documents, 0) == documents


def test_an_adapter_beside_another_model_than_its_own_is_told(tmp_path: Path, tiny_model_dir: Path, tiny_adapter_dir: Path, capsys):
    folder = shutil.copytree(tiny_adapter_dir, tmp_path / "foreign")
    _model_digest(f"{tiny_model_dir}+{folder}")
    assert not capsys.readouterr().err
    for digest, said in ((open_model(str(tiny_model_dir))[1], False), ("another", True)):
        output = tmp_path / digest
        config = EvaluateConfig(models=("m",), data=("d",), output=str(output))
        with publish(str(output), stage="tune", inputs={"model": digest}, config=config) as draft:
            shutil.copytree(tiny_adapter_dir, draft.dir, dirs_exist_ok=True)
        _model_digest(f"{tiny_model_dir}+{output}")
        assert ("was tuned from another model" in capsys.readouterr().err) == said


def test_data_mistakes_are_named(tmp_path: Path, tiny_model_dir: Path):
    def run(*data: str, models: tuple[str, ...] = (str(tiny_model_dir),)) -> None:
        evaluate(EvaluateConfig(models=models, data=data, output=str(tmp_path / "out")))

    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bad.parquet").write_text("no")
    (tmp_path / "image.png").write_text("no")
    (tmp_path / "good.jsonl").write_text('{"text": "hello"}\n{"texts": 1}\n{')
    mistakes = {"absent.txt": "no such file", "empty.txt": "no text", "bad.parquet": "not a parquet file", "image.png": r"\.png file"}
    for name, message in mistakes.items():
        with pytest.raises(ValueError, match=message):
            run(str(tmp_path / name))
    with pytest.raises(ValueError, match="sterna tokenize"):
        run(str(tmp_path))
    with pytest.raises(ValueError, match="two are called 'm'"):
        run(str(tmp_path / "good.jsonl"), models=("m=a", "m=b"))
    with pytest.raises(ValueError, match="no adapter"):
        run(str(tmp_path / "good.jsonl"), models=(f"{tiny_model_dir}+{tmp_path}",))
    questions = tmp_path / "bad.jsonl"
    questions.write_text('{"prompt": "p"}\n{')
    with pytest.raises(ValueError, match=r"no line can be used \(1 no choices, 1 not json\)"):
        evaluate(EvaluateConfig(models=(str(tiny_model_dir),), tasks=(str(questions),), output=str(tmp_path / "out")))
    assert read_documents([str(tmp_path / "good.jsonl")]) == ([Document("hello", "text")], 2)
