from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from train.loss import CausalLoss, token_nll
from train.tuning.config import TuneConfig
from train.tuning.methods import attach


@pytest.mark.parametrize("method", ["prompt", "prefix", "p_tuning"])
def test_a_learnt_beginning_is_read_as_peft_reads_it(method: str, tiny_model_dir: Path):
    config = TuneConfig(model="m", data=("d",), output="o", method=method, virtual_tokens=5)
    model = attach(AutoModelForCausalLM.from_pretrained(tiny_model_dir), config, 1).eval()
    rows = torch.tensor([[4, 9, 17, 30, 60, 9], [7, 8, 9, 3, 3, 3]])
    labels = torch.tensor([[9, 17, 30, 60, 9, -100], [8, 9, -100, -100, -100, -100]])  # the second is padded on the right
    positions = torch.arange(6).expand_as(rows)
    with torch.no_grad():
        theirs = model.peft(input_ids=rows).logits
        if method != "prefix":
            theirs = theirs[:, 5:]
        torch.testing.assert_close(model(input_ids=rows).logits, theirs)
        expected = torch.nn.functional.cross_entropy(theirs.flatten(0, 1), labels.flatten(), reduction="none").view_as(rows)
        torch.testing.assert_close(token_nll(model, rows, positions, labels), expected)
        torch.testing.assert_close(CausalLoss(model)(rows, labels, positions), expected.sum())
        alone = token_nll(model, rows[1:, :3], positions[:1, :3], labels[1:, :3])
        torch.testing.assert_close(alone, expected[1:, :3])  # what a row is padded with is not seen
    assert model.num_virtual_tokens == 5


def test_a_prefix_begins_as_keys_and_values_of_the_vocabulary(tiny_model_dir: Path):
    """So that a fresh prefix is what the model would have of some text: with that text ahead, it computes the same."""
    config = TuneConfig(model="m", data=("d",), output="o", method="prefix", virtual_tokens=5, seed=3)
    model = attach(AutoModelForCausalLM.from_pretrained(tiny_model_dir), config, 1).eval()
    torch.manual_seed(3)
    drawn = torch.randint(400, (1, 5))
    rows = torch.tensor([[4, 9, 17, 30]])
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=rows).logits, base(torch.cat((drawn, rows), 1)).logits[:, 5:], rtol=1e-4, atol=1e-4)
