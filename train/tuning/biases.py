"""BitFit: only the biases learn; an architecture that can have biases, but was trained without them, is given them at zero.

Promise: before training the model computes what it computed; after it, it is a plain model of its architecture, whose configuration
says which biases there are. Price: what is trained is a vector per linear layer. Source: BitFit (arXiv 2106.10199); Llama and its
kin have no biases, but their configurations have switches for them (attention_bias, mlp_bias).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

__all__ = ["with_biases"]


def with_biases(model: PreTrainedModel) -> PreTrainedModel:
    """`model` itself, with every bias that its configuration can switch on, and nothing trainable but biases.

    Raises ValueError for an architecture that can have none.
    """
    switched = _switched_on(model.config)
    for name in _bias_names(switched) - {name for name, _ in model.named_parameters()}:
        layer = model.get_submodule(name.removesuffix(".bias"))
        layer.bias = nn.Parameter(torch.zeros(layer.out_features, dtype=layer.weight.dtype, device=layer.weight.device))
    model.config = switched
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(".bias"))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"method: bitfit trains biases, and {switched.model_type} can have none; choose another method")
    return model


def _switched_on(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with each of its switches for biases on."""
    changed: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if "bias" in name and isinstance(value, bool):
            changed[name] = not name.startswith("no_")
    found = copy.deepcopy(config)
    for name, value in changed.items():
        setattr(found, name, value)
    return found


def _bias_names(config: PretrainedConfig) -> set[str]:
    """Names of the linear layers' biases in a model of this configuration."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.bias is not None)
    return {f"{name}.bias" for name in linear}
