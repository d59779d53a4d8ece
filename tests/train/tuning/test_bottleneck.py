from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from train.tuning.bottleneck import Bottleneck, with_bottlenecks


def test_an_adapter_adds_a_narrow_network_to_its_layer():
    torch.manual_seed(0)
    layer = Bottleneck(nn.Linear(6, 8), width=3)
    x = torch.randn(5, 6)
    assert torch.equal(layer(x), layer.base(x))
    nn.init.normal_(layer.up.weight)
    y = layer.base(x)
    torch.testing.assert_close(layer(x), y + nn.functional.gelu(y @ layer.down.weight.T) @ layer.up.weight.T)


def test_adapters_stand_where_the_residual_stream_is_written_to(tiny_model_dir: Path):
    model = with_bottlenecks(AutoModelForCausalLM.from_pretrained(tiny_model_dir), 4)
    found = [name for name, module in model.named_modules() if isinstance(module, Bottleneck)]
    assert found == [f"model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.o_proj", "mlp.down_proj")]
    trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"down", "up"}
    one = with_bottlenecks(AutoModelForCausalLM.from_pretrained(tiny_model_dir), 4, ["up_proj"])
    assert sum(isinstance(module, Bottleneck) for module in one.modules()) == 2
    with pytest.raises(ValueError, match="targets: nonsense"):
        with_bottlenecks(model, 4, ["nonsense"])
