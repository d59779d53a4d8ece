"""Pipeline parallelism: a model cut into layers is the model. Its steps against one process's are in test_layouts.py."""

import pytest
import torch

from train.architectures import make_config, make_model
from train.parallel.pipeline import _layers
from train.plan.shapes import ModelShape, shape_of_width


@pytest.mark.parametrize("architecture", ["dense", "sliding"])
def test_the_layers_one_after_the_other_are_the_model(architecture):
    shape = shape_of_width(64, vocab_size=90, max_length=32, architecture=architecture)
    model = make_model(make_config(ModelShape.from_table(shape.table() | {"tie_embeddings": False}))).eval()
    tokens = torch.arange(48).view(2, 24) % 90
    positions = torch.cat([torch.arange(10), torch.arange(14)]).expand(2, -1)
    fed = (tokens, positions)
    with torch.no_grad():
        for layer in _layers(model, None):
            fed = layer(fed)
        expected = model.get_decoder()(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
    torch.testing.assert_close(fed[0], expected)
    assert fed[1] is model.get_output_embeddings().weight
