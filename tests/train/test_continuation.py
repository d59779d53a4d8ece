from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cluster.artifact import open_artifact
from train.config import PretrainConfig
from train.continuation import check_base, continued
from train.pretrain import _read_plan, pretrain
from train.recipe import Recipe

RECIPE = Recipe(steps=1, global_batch=2, micro_batch=1, sequence_length=32, learning_rate=1e-3)


def test_a_folder_of_hugging_faces_is_gone_on_with_in_float32(tiny_model_dir: Path, tokens_dir: Path):
    assert check_base(str(tiny_model_dir), RECIPE, open_artifact(str(tokens_dir), made_by="tokenize"))
    assert next(continued(str(tiny_model_dir)).parameters()).dtype == torch.float32


def test_the_command_lines_model_takes_the_place_of_the_plans(tiny_model_dir: Path, plan_file: Path):
    plan, _ = _read_plan(str(plan_file), model=str(tiny_model_dir))
    assert plan["model"] == {"from": str(tiny_model_dir)}
    assert plan["predicted"] == {}
    plan_file.write_text(f'[model]\nfrom = "{tiny_model_dir}"\n[train]\nsteps = 1\n')
    assert _read_plan(str(plan_file))[0]["model"] == {"from": str(tiny_model_dir)}


def test_a_model_of_another_vocabulary_or_reach_is_refused_in_one_line(tmp_path: Path, tiny_model_dir: Path, tokens_dir: Path):
    tokens = open_artifact(str(tokens_dir), made_by="tokenize")
    other = tmp_path / "other"
    shutil.copytree(tiny_model_dir, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16}))
    with pytest.raises(ValueError, match="its positions reach 16 tokens, the sequences are 32 long"):
        check_base(str(other), RECIPE, tokens)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 400, "content": "<|another|>"})
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"was made with another vocabulary than .*other; run `sterna tokenize --tokenizer"):
        check_base(str(other), RECIPE, tokens)
    with pytest.raises(ValueError, match="no such model folder"):
        check_base(str(tmp_path / "absent"), RECIPE, tokens)


@pytest.mark.usefixtures("ray_session")
def test_pretraining_goes_on_where_the_model_was(tmp_path: Path, plan_file: Path, tiny_model_dir: Path, tokens_dir: Path):
    """The first loss is the model's own on that batch, and the readings are beside the result."""
    from train.corpus import Cursor, Sequences
    from train.plain import PlainStepper

    config = PretrainConfig(plan=str(plan_file), model=str(tiny_model_dir), output=str(tmp_path / "more"), num_workers=1, steps=3)
    made = pretrain(config)
    source = Sequences.open(tokens_dir)
    first = Cursor(0, 8, len(source)).indices()
    expected = PlainStepper(continued(str(tiny_model_dir)), RECIPE).nll(source.batch(first)) / source.num_labels(first)
    assert made.manifest.figures["loss"]["series"][0]["y"][0] == pytest.approx(expected, rel=1e-4)
    assert [series["name"] for series in made.manifest.figures["loss"]["series"]] == ["loss"]
    readings = [json.loads(line) for line in (Path(made.uri) / "metrics.jsonl").read_text().splitlines()]
    assert [(reading["step"], reading["window"]) for reading in readings] == [(1, 0), (2, 1), (3, 2)]
    assert all(0 < reading["mfu"] < 1.5 and reading["memory_bytes"] > 1e8 for reading in readings)
