"""A tokens folder and a plan small enough to train on in a test, made to the same formats as the stages'."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifact import publish
from train.config import EvaluateConfig

LENGTH = 32
CODE = '''def area(width, height):
    """Area of a rectangle {n}."""
    total = width * height + {n}
    return total
'''


@pytest.fixture(scope="session")
def tokens_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """64 packed sequences of 32 tokens in two shards, some with several segments and padding, and held-out text."""
    from tokenizers import Tokenizer

    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    tokenizer = Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
    rng = np.random.default_rng(0)
    ids = tokenizer.encode("\n".join(CODE.format(n=n) for n in range(200))).ids
    tokens, segments = np.full((64, LENGTH), 3, np.uint16), np.zeros((64, LENGTH), np.uint16)
    for row in range(64):
        start, number = 0, 1
        while (room := LENGTH - start) > 3 and number < 4:
            size = int(rng.integers(2, room + 1))
            begin = int(rng.integers(0, len(ids) - size))
            tokens[row, start : start + size], segments[row, start : start + size] = ids[begin : begin + size], number
            start, number = start + size, number + 1
    config = EvaluateConfig(models=("none",), data=("none",), output=str(folder))  # any settings will do
    with publish(str(folder), stage="tokenize", inputs={}, config=config) as draft:
        (draft.dir / "shards").mkdir()
        for shard, rows in enumerate((slice(0, 40), slice(40, 64))):
            np.save(draft.dir / f"shards/{shard:05}.tokens.npy", tokens[rows])
            np.save(draft.dir / f"shards/{shard:05}.segments.npy", segments[rows])
        (draft.dir / "tokenizer").mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (draft.dir / "tokenizer" / name).write_bytes((tiny_model_dir / name).read_bytes())
        rows = {
            "id": ["a", "b"],
            "source": ["a.py", "b.txt"],
            "kind": ["code", "prose"],
            "text": [CODE.format(n=7), "The tern flies. " * 20],
        }
        pq.write_table(pa.table(rows), draft.dir / "held_out.parquet")
        draft.metrics = {"vocab_size": 400, "sequence_length": LENGTH, "num_sequences": 64, "num_tokens": int((segments > 0).sum())}
    return folder


@pytest.fixture
def plan_file(tmp_path: Path, tokens_dir: Path) -> Path:
    """A plan.toml of one's own: a one-layer model, 6 steps of 8 sequences."""
    model = {
        "architecture": "dense", "vocab_size": 400, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1,
        "head_dim": 16, "intermediate_size": 64, "tie_embeddings": True, "max_length": 64,
    }  # fmt: skip
    train = {
        "tokens": str(tokens_dir), "steps": 6, "global_batch": 8, "micro_batch": 2, "sequence_length": LENGTH,
        "learning_rate": 1e-2, "precision": "float32", "checkpoint_every": 3,
    }  # fmt: skip
    tables = {"model": model, "train": train, "predicted.loss": {"value": 5.5}}
    lines = [line for name, table in tables.items() for line in (f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items()))]
    path = tmp_path / "plan.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def plain_losses(plan_file: Path, tokens_dir: Path) -> list[float]:
    """What one process of plain torch makes of the plan: the loss of each step."""
    from cluster.artifact import open_artifact
    from train.corpus import Sequences
    from train.loop import run
    from train.plain import PlainStepper
    from train.pretrain import _build, _read_plan
    from train.recipe import Recipe
    from train.state import State

    plan, _ = _read_plan(str(plan_file))
    recipe = Recipe(**{k: v for k, v in plan["train"].items() if k != "tokens"} | {"num_workers": 1})
    model = _build(plan["model"], open_artifact(str(tokens_dir), made_by="tokenize"), recipe.seed)
    return [r.loss for r in run(PlainStepper(model, recipe), Sequences.open(tokens_dir), recipe, state=State()).records]
