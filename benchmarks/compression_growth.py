"""How the search's cost grows: random models of one shape and more and more layers, searched through the whole way."""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import torch

from benchmarks.compression_bench import Plain
from train.compress.calibrate import moments
from train.compress.divergence import make_reference
from train.compress.find import find, offer, probe_of
from train.compress.options import parse_options

__all__ = ["grown"]

_PROMPTS, _PROMPT, _COMPLETION = 24, 16, 16


def grown(config: Any, depth: int) -> dict[str, float]:
    """Matrices, passes over the search's prompts and seconds at this depth."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    config.num_hidden_layers = depth
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    rows = np.random.default_rng(0).integers(4, config.vocab_size, (_PROMPTS, _PROMPT + _COMPLETION)).tolist()
    reference = make_reference(Plain(model), [row[:_PROMPT] for row in rows], [row[_PROMPT:] for row in rows])
    started = time.perf_counter()
    probe = probe_of(model, reference)
    offered = offer(model, probe, parse_options("int8,int4"), moments(model, rows))
    made = time.perf_counter()
    found = find(offered, probe, {"kl": 0.01}, held_out=_PROMPTS * _COMPLETION)
    return {
        "matrices": len(found.plan),
        "joint_passes": found.passes,
        "passes": probe.passes,
        "offer_s": made - started,
        "search_s": time.perf_counter() - made,
    }
