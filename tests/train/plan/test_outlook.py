"""The outlook: whose law speaks, and how N is counted for it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.plan.forms import FORMS
from train.plan.law_file import PREDICTOR, read_law
from train.plan.laws import CHINCHILLA
from train.plan.outlook import Data, Outlook, tokens_for
from train.plan.shapes import shape_of_width

DATA = Data(num_sequences=10_000, sequence_length=512, vocab_size=8192, bytes_per_token=3.5, zstd_bits_per_byte=1.5)
SHAPE = shape_of_width(256, vocab_size=8192, max_length=512)


def own_law(folder, embeddings="included"):
    theta = [np.log(CHINCHILLA.A), np.log(CHINCHILLA.B), np.log(CHINCHILLA.E), CHINCHILLA.alpha, CHINCHILLA.beta]
    document = {"form": "chinchilla", "theta": theta, "thetas": [theta] * 3, "residuals": [0.01, -0.01, 0.0, 0.02], "stretch": 1.0,
                "seed": 0, "embeddings": embeddings, "largest": [1e6, 1e14]}  # fmt: skip
    assert len(theta) == len(FORMS["chinchilla"].coefficients)
    (folder / PREDICTOR).write_text(json.dumps(document))
    return read_law(folder)


def test_a_law_of_ones_own_speaks_instead_of_the_priors(tmp_path):
    outlook = Outlook(own_law(tmp_path))
    plenty = replace(DATA, num_sequences=10**8)
    found = outlook.loss(SHAPE, 2e9, plenty)
    assert found.value == pytest.approx(CHINCHILLA.loss(SHAPE.num_parameters, 2e9))
    assert found != Outlook().loss(SHAPE, 2e9, plenty)
    assert outlook.loss(SHAPE, 10.0, DATA).value == pytest.approx(np.log(8192)), "nobody does worse than a guess"
    assert outlook.beyond(SHAPE, 1e15) == pytest.approx(10.0)
    assert Outlook().beyond(SHAPE, 1e30) == 1.0


def test_a_law_without_embeddings_gets_n_without_them(tmp_path):
    outlook = Outlook(own_law(tmp_path, "excluded"))
    assert outlook.parameters(SHAPE) == SHAPE.num_parameters - SHAPE.num_embedding_parameters
    assert Outlook().parameters(SHAPE) == SHAPE.num_parameters


@settings(max_examples=30)
@given(st.floats(3.0, 8.0))
def test_the_fewest_tokens_for_a_loss_reach_it_and_fewer_do_not(loss):
    outlook = Outlook()
    found = tokens_for(loss, SHAPE, DATA, outlook, most=1e8)
    if found is None:
        assert outlook.loss(SHAPE, 1e8, DATA).value > loss
    else:
        assert outlook.loss(SHAPE, found, DATA).value <= loss
        assert found < 2 or outlook.loss(SHAPE, found * 0.99, DATA).value > loss
