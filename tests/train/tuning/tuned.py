"""Models tuned in each way, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from train.conversations import encode_pairs
from train.tuning.config import TuneConfig
from train.tuning.methods import attach
from train.tuning.preferences import Pairs, parse_pair
from train.tuning.reference import likelihoods

__all__ = ["base", "changed", "config_of", "logits", "pairs_of"]


def config_of(method: str, **changes: Any) -> TuneConfig:
    """Settings small enough for the tiny model."""
    fields = {"model": "m", "data": ("d",), "output": "o", "rank": 4, "alpha": 8.0, "virtual_tokens": 5, "method": method}
    return TuneConfig(**fields | changes)


def base(folder: Path) -> Any:
    """The model before tuning."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model: Any) -> torch.Tensor:
    """[1, 6, V] of a fixed text."""
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[4, 9, 17, 30, 60, 9]])).logits.float()


def changed(method: str, folder: Path, **changes: Any) -> Any:
    """A model tuned by `method`, with trained weights that are far from where they began."""
    tuned = attach(base(folder), config_of(method, **changes), 10)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if ".lora_E." in name:
                parameter[1] = 0.0  # a rank that AdaLoRA pruned
    return tuned


def pairs_of(folder: Path, number: int = 16) -> Pairs:
    """Preferences that a tiny model can learn, with what it thinks of them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = [json.dumps({"prompt": f"add {n}", "chosen": f"return {n}", "rejected": f"{n} is a bird"}) for n in range(number)]
    rows, dropped = encode_pairs([parse_pair(line) for line in lines], tokenizer, 64)
    assert rows is not None
    assert not dropped
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return Pairs(rows, likelihoods(model, rows, np.arange(len(rows))))
