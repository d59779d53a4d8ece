"""Exported folders: who reads them, with which numbers, and what they take on disk."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from train.compress.calibrate import matrices, weight_of
from train.compress.candidates import Variant, degraded
from train.compress.export import export, readers
from train.compress.options import option
from train.compress.quantize import load_dense

TOKENS = list(range(5, 37))
MIXED = ("int8", "int4", "keep", "int4-g32", "int6-rtn", "int8-g32", "int3")


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Any:
    return load_dense(tiny_model_dir)


def chosen(model: Any, names: tuple[str, ...], embedding: str = "keep") -> dict[str, Variant]:
    """The named options in turn over the linear layers, one for the embedding."""
    turns = {m.name: embedding if m.role != "linear" else names[i % len(names)] for i, m in enumerate(matrices(model))}
    return {name: degraded(weight_of(model, name), option(turn), None) for name, turn in turns.items()}


def logits_of_dense(folder: Path, variants: dict[str, Variant]) -> torch.Tensor:
    reference = load_dense(folder, torch.float32)
    for name, variant in variants.items():
        weight_of(reference, name).data.copy_(variant.dense)
    return logits_of(reference)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].clone()


def from_transformers(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def engine_logits(folder: Path) -> torch.Tensor:
    return Engine.load(folder, EngineConfig(dtype="float32")).runner.logits(TOKENS)


def tensor_bytes(folder: Path) -> int:
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            total += sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118
    return total


@pytest.mark.parametrize("embedding", ["keep", "int8", "int8-g64"])
def test_a_mixed_plan_gives_the_same_logits_in_transformers_and_in_our_engine(model, tiny_model_dir, tmp_path, embedding):
    variants = chosen(model, MIXED, embedding)
    assert export(model, variants, tiny_model_dir, tmp_path).readers == ("sterna", "transformers")
    expected = logits_of_dense(tiny_model_dir, variants)
    assert torch.equal(logits_of(from_transformers(tmp_path)), expected)
    torch.testing.assert_close(engine_logits(tmp_path), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(expected, logits_of(load_dense(tiny_model_dir, torch.float32)), atol=1e-3)
    described = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (described["quant_method"], described["quantization_status"]) == ("compressed-tensors", "compressed")
    assert described["format"] == ("pack-quantized" if embedding == "keep" else "mixed-precision")
    assert all(name in described["ignore"] for name, variant in variants.items() if variant.option.kind == "keep" and "layers" in name)


@pytest.mark.parametrize(
    ("names", "embedding", "why"),
    [
        (("sparse50-wanda", "2:4-sparsegpt", "keep"), "keep", "sparse matrices"),
        (("rank50", "int4"), "sparse75-magnitude", "lowrank matrices and sparse matrices"),
        (("int8",), "int4", "embedding of fewer than 8 bits"),
    ],
)
def test_what_transformers_has_no_format_for_runs_in_our_engine_and_is_refused_there(
    model, tiny_model_dir, tmp_path, names, embedding, why
):
    variants = chosen(model, names, embedding)
    exported = export(model, variants, tiny_model_dir, tmp_path)
    assert exported.readers == ("sterna",)
    assert why in exported.why_not
    torch.testing.assert_close(engine_logits(tmp_path), logits_of_dense(tiny_model_dir, variants), rtol=0, atol=1e-4)
    with pytest.raises((RuntimeError, AttributeError)):
        from_transformers(tmp_path)


def test_dense_is_an_ordinary_folder(tmp_path):
    model, source = untied_or_tied(tied=True, source=tmp_path / "source")
    variants = chosen(model, ("2:4-magnitude", "rank50", "int4"), "int4")
    assert "transformers" in export(model, variants, source, tmp_path / "output", dense=True).readers
    assert "quantization_config" not in json.loads((tmp_path / "output" / "config.json").read_text())
    assert tensor_bytes(tmp_path / "output") == tensor_bytes(source)
    loaded = load_dense(tmp_path / "output")
    for name, variant in variants.items():
        assert torch.equal(weight_of(loaded, name), variant.dense.bfloat16())


@settings(max_examples=6, deadline=None)
@given(
    names=st.lists(st.sampled_from([*MIXED, "2:4-wanda", "sparse50-sparsegpt", "rank50"]), min_size=1, max_size=5),
    embedding=st.sampled_from(["keep", "int8", "int8-g64", "int4", "int5", "sparse50-magnitude", "rank25"]),
)
def test_bytes_on_disk_are_those_that_the_plan_said(tmp_path_factory, names, embedding):
    model, folder = untied_or_tied(tied=len(names) % 2 == 0, source=tmp_path_factory.mktemp("source"))
    variants, output = chosen(model, tuple(names), embedding), tmp_path_factory.mktemp("output")
    export(model, variants, folder, output)
    planned = sum(m.stored_bytes(variants[m.name].option) - m.bytes for m in matrices(model))
    assert tensor_bytes(output) - tensor_bytes(folder) == planned


def untied_or_tied(*, tied: bool, source: Path, **changes: Any) -> tuple[Any, Path]:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40} | changes
    model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=tied, **shape)).to(torch.bfloat16)
    model.save_pretrained(source)
    return model, source


def test_sharded_folders_keep_their_index(tmp_path):
    model, source = untied_or_tied(tied=False, source=tmp_path / "source")
    model.save_pretrained(source, max_shard_size="8KB")
    model.save_pretrained = functools.partial(model.save_pretrained, max_shard_size="8KB")
    variants = chosen(model, ("int4",), "int8")
    export(model, variants, source, tmp_path / "output")
    index = json.loads((tmp_path / "output" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert index["metadata"]["total_size"] == tensor_bytes(tmp_path / "output")
    assert torch.equal(logits_of(from_transformers(tmp_path / "output")), logits_of_dense(source, variants))


def test_readers_can_be_asked_beforehand(model):
    assert readers(matrices(model), chosen(model, ("int8",))).why_not == ""
    assert "export dense" in readers(matrices(model), chosen(model, ("rank50",))).why_not


def test_a_matrix_that_the_model_lacks_is_refused(model, tiny_model_dir, tmp_path):
    with pytest.raises(ValueError, match="lm_head is no matrix of this model"):
        export(model, {"lm_head": degraded(torch.eye(4), option("int8"), None)}, tiny_model_dir, tmp_path)


@pytest.mark.parametrize("embedding", ["int8", "int4", "rank50"])
def test_the_bf16_kernels_run_a_mixed_plan(model, tiny_model_dir, tmp_path, embedding):
    variants = chosen(model, (*MIXED, "2:4-wanda"), embedding)
    export(model, variants, tiny_model_dir, tmp_path)
    expected = logits_of_dense(tiny_model_dir, variants)
    loaded = Engine.load(tmp_path, EngineConfig(dtype="bfloat16")).runner.logits(TOKENS)
    assert (loaded - expected).norm() < 0.02 * expected.norm()
