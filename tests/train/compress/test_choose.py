"""One option for all: what is kept and why, bytes as they will be on disk, moments only where an option asks for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train.compress import choose
from train.compress.choose import calibrated, uniform
from train.compress.options import option
from train.compress.quantize import load_dense


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return load_dense(tiny_model_dir, torch.float32)


def test_every_linear_layer_has_the_option_and_the_rest_a_reason(model):
    choice = uniform(model, option("int8"), {}, lm_head=False)
    by_name = {row["name"]: row for row in choice.rows}
    assert by_name["model.embed_tokens"]["option"] == "keep"
    assert by_name["model.embed_tokens"]["reason"] == "embedding and output layer in one"
    linear = {name: row for name, row in by_name.items() if name.endswith("_proj")}
    assert linear.keys() == choice.variants.keys()
    assert {row["option"] for row in linear.values()} == {"int8"}
    assert all(row["bytes_after"] == choice.variants[name].bytes < row["bytes_before"] for name, row in linear.items())
    assert all(row["has_kernel"] for row in choice.rows)


def test_what_has_no_kernel_says_so(model):
    choice = uniform(model, option("sparse50-magnitude"), {}, lm_head=False)
    assert {row["has_kernel"] for row in choice.rows if row["option"] != "keep"} == {False}


def test_texts_are_read_where_an_option_asks_for_it(model):
    texts = np.random.default_rng(0).integers(4, 400, (3, 8)).tolist()
    assert calibrated(model, [option("int8"), option("sparse50-magnitude")], texts) == {}
    known = calibrated(model, [option("int8"), option("int4")], texts)
    assert known.keys() >= set(uniform(model, option("int8"), {}, lm_head=False).variants)


def test_no_text_is_read_before_a_moment_is_looked_at(model, monkeypatch):
    asked = []
    monkeypatch.setattr(choose, "moments", lambda model, sequences, progress: asked.append(sequences) or {"a": "seen"})
    known = calibrated(model, [option("int4")], [[1, 2]])
    assert asked == []
    assert (known.get("a"), known.get("b"), len(known)) == ("seen", None, 1)
    assert asked == [[[1, 2]]], "one pass serves all"
