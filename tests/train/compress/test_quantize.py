"""Rounding's bound, what a folder takes by kind, and the folders that cannot be compressed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from train.compress.calibrate import matrices, weight_of
from train.compress.candidates import degraded
from train.compress.export import export
from train.compress.options import option
from train.compress.quantize import disk_bytes, load_dense, round_to_nearest


@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16]), st.floats(1e-6, 1e3))
def test_rounding_is_within_half_a_step(seed, rows, columns, dtype, size):
    weight = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)
    q, scale = round_to_nearest(weight, dtype)
    assert q.dtype == torch.int8
    assert q.abs().max() <= 127
    error = (weight.float() - q.float() * scale.float()).abs()
    assert (error <= 0.5001 * scale.float()).all()


def test_zero_rows_stay_zero_and_tiny_weights_do_not_divide_by_zero():
    q, scale = round_to_nearest(torch.tensor([[0.0, 0.0], [1e-44, -1e-44]]), torch.float32)
    assert torch.isfinite(scale).all()
    assert q[0].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["int8", "int4", "2:4-magnitude", "rank50"])
def test_bytes_on_disk_are_told_by_kind(tiny_model_dir: Path, tmp_path, name):
    model = load_dense(tiny_model_dir)
    variants = {m.name: degraded(weight_of(model, m.name), option(name), None) for m in matrices(model) if m.role == "linear"}
    export(model, variants, tiny_model_dir, tmp_path)
    for folder in (tmp_path, tiny_model_dir):
        sizes = dict(disk_bytes(folder))
        header = sizes.pop("total") - sum(sizes.values())
        assert 0 < header < 20_000
    before, after = disk_bytes(tiny_model_dir), disk_bytes(tmp_path)
    assert (after["embeddings"], after["other"]) == (before["embeddings"], before["other"])
    assert after["matrices"] + after["scales"] == sum(variant.bytes for variant in variants.values())
    assert after["matrices"] < before["matrices"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "quantised already"),
        ({"architectures": ["BertModel"], "model_type": "bert_of_mars"}, "does not know the architecture BertModel"),
        ({"architectures": ["CLIPModel"], "model_type": "clip"}, "not a causal language model"),
    ],
)
def test_what_cannot_be_compressed_is_one_line(tiny_model_dir: Path, tmp_path, change, message):
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ValueError, match=message) as error:
        load_dense(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_a_folder_that_lacks_a_weight_or_a_part_of_its_file_is_one_line(tiny_model_dir: Path, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    whole = load_file(file)
    save_file({name: tensor for name, tensor in whole.items() if "1.mlp.up_proj" not in name}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"asks for 1 weights that are not there .*model\.layers\.1\.mlp\.up_proj"):
        load_dense(tmp_path / "model")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"its weights cannot be read \(model\.safetensors: "):
        load_dense(tmp_path / "model")


@pytest.mark.parametrize("name", ["2:4-magnitude", "rank50"])
def test_what_is_compressed_without_integers_is_not_compressed_again(tiny_model_dir: Path, tmp_path, name):
    model = load_dense(tiny_model_dir)
    export(model, {m.name: degraded(weight_of(model, m.name), option(name), None) for m in matrices(model)[1:]}, tiny_model_dir, tmp_path)
    with pytest.raises(ValueError, match="compressed already; compress the model it was made from"):
        load_dense(tmp_path)
