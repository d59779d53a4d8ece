from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from train.conversations import encode_pairs
from train.tuning.preferences import parse_pair
from train.tuning.reference import likelihoods, with_reference


@pytest.mark.usefixtures("ray_session")
def test_the_reference_is_spread_over_the_cluster_and_comes_back_in_order(tiny_model_dir: Path):
    lines = [json.dumps({"prompt": f"add {n}", "chosen": f"return {n}", "rejected": "no"}) for n in range(9)]
    rows, _ = encode_pairs([parse_pair(line) for line in lines], AutoTokenizer.from_pretrained(tiny_model_dir), 64)
    assert rows is not None
    pairs = with_reference(rows, str(tiny_model_dir), "float32")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    expected = [float(likelihoods(model, rows, np.array([row]))[0]) for row in range(len(rows))]
    np.testing.assert_allclose(pairs.reference, expected, rtol=1e-4)
    assert len(pairs) == 9
