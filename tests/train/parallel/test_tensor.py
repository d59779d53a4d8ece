"""Tensor parallelism: which matrices are cut, and along what. Its steps against one process's are in test_layouts.py."""

import re

import pytest

from train.architectures import make_config, make_model
from train.parallel.tensor import layer_specs
from train.plan.shapes import ModelShape, shape_of_width


@pytest.mark.parametrize("architecture", ["dense", "sliding"])
def test_every_matrix_of_every_layer_is_cut_by_one_rule(architecture):
    table = shape_of_width(64, vocab_size=90, max_length=32, architecture=architecture).table()
    model = make_model(make_config(ModelShape.from_table(table | {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16})))
    specs = layer_specs(model, 2)
    for name, weight in model.named_parameters():
        matching = [spec for spec in specs if any(re.match(pattern, name) for pattern in spec["patterns"])]
        inside = ".layers." in name and weight.ndim == 2
        assert len(matching) == int(inside), name
