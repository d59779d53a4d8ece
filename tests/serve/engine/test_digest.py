"""A model's digest: the same for copies, another for other weights or another config, in any process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve.engine.config import EngineConfig
from serve.engine.digest import model_digest
from serve.engine.engine import Engine
from serve.engine.request import Request

SHARD = "model.safetensors"


def digest(folder: Path) -> str:
    return model_digest(folder, [folder / SHARD])


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / SHARD)
    change(tensors)
    save_file(tensors, folder / SHARD, {"format": "pt"})


def test_copies_are_the_same_model_whatever_they_are_called(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(tiny_model_dir, tmp_path / name)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tiny_model_dir)


def test_equal_names_are_not_the_same_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    changes: list[Callable[[dict[str, torch.Tensor]], object]] = [
        lambda tensors: [tensor.add_(1e-3) for tensor in tensors.values()],  # training
        lambda tensors: tensors["model.layers.1.self_attn.k_proj.weight"].mul_(1.01),  # an adapter merged into one projection
        lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"].view(-1)[128 * 64 // 2].add_(1),  # one number that is sampled
        lambda tensors: tensors.update(extra=torch.zeros(1)),
        lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].bfloat16()}),
        lambda tensors: tensors.update(empty=torch.zeros(0)),
    ]
    digests = {digest(tiny_model_dir)}
    for i, change in enumerate(changes):
        folder = tmp_path / str(i) / tiny_model_dir.name
        shutil.copytree(tiny_model_dir, folder)
        rewrite(folder, change)
        digests.add(digest(folder))
    config = json.loads((tiny_model_dir / "config.json").read_text())
    shutil.copytree(tiny_model_dir, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    digests.add(digest(tmp_path / "other"))
    assert len(digests) == len(changes) + 2


def test_shards_count_in_order(tiny_model_dir: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_model_dir / SHARD)
    names = sorted(tensors)
    for i, part in enumerate((names[:3], names[3:])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"{i}.safetensors")
    shutil.copy(tiny_model_dir / "config.json", tmp_path)
    shards = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    assert len({model_digest(tmp_path, shards), model_digest(tmp_path, shards[::-1]), model_digest(tmp_path, shards[:1])}) == 3


CHAIN = """
import sys
from serve.engine.engine import Engine
from serve.engine.request import Request

engine = Engine.load(sys.argv[1])
engine.add(Request(id="a", prompt=tuple(range(5, 75)), tenant="t"))
engine.step()
print(*(digest.hex() for digest in engine.kv_chain("a")))
"""


def test_chains_are_the_same_in_another_process(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "under another name")
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", CHAIN, str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    engine = Engine.load(tiny_model_dir)
    engine.add(Request(id="a", prompt=tuple(range(5, 75)), tenant="t"))
    engine.step()
    assert [digest.hex() for digest in engine.kv_chain("a")] == done.stdout.split()
    assert len(done.stdout.split()) == 4


@pytest.mark.parametrize(("kind", "same"), [("longrope", False), ("default", True)])
def test_where_angles_depend_on_the_longest_text_it_is_part_of_the_model(
    kind: str, same: bool, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    half = config["head_dim"] // 2
    rope = {"rope_type": kind, "rope_theta": 1e4}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * half, "long_factor": [2.0] * half, "original_max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    ids = {Engine.load(folder, EngineConfig(max_length=length)).model_id for length in (64, 512)}
    assert (len(ids) == 1) == same
