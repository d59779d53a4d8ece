"""A run of a sweep: it learns, it is judged on what it never saw, and it is the same each time."""

import numpy as np
import pytest

from cluster.artifact import open_artifact
from tests.train.plan.test_run import LENGTH, VOCAB, write_tokens
from train.corpus import Sequences
from train.plan.ladder import Rung
from train.plan.rung import split, train_rung
from train.plan.shapes import shape_of_width
from train.recipe import Recipe


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, tiny_model_dir):
    return open_artifact(write_tokens(tmp_path_factory.mktemp("sweep") / "tokens", tiny_model_dir), made_by="tokenize")


def test_what_is_held_out_is_never_trained_on(tokens):
    whole = Sequences.open(tokens.local())
    trained, held_out = split(whole, 30, seed=1)
    assert (len(trained), len(held_out)) == (370, 30)
    seen = {row.tobytes() for row in trained.batch(np.arange(370)).input_ids.numpy()}
    assert not seen & {row.tobytes() for row in held_out.batch(np.arange(30)).input_ids.numpy()}
    assert trained.num_labels(np.arange(5)) == trained.batch(np.arange(5)).num_labels


def test_a_run_trains_and_says_what_it_did(tokens):
    recipe = Recipe(steps=12, global_batch=8, micro_batch=4, sequence_length=LENGTH, learning_rate=3e-3, zero_stage=0, precision="float32",
                    num_workers=1)  # fmt: skip
    rung = Rung("one", shape_of_width(32, vocab_size=VOCAB, max_length=LENGTH), recipe, 1e9)
    row, again = (train_rung(rung, tokens, 30, 1) for _ in range(2))
    assert row["loss"] == again["loss"]
    assert 0 < row["loss"] < np.log(VOCAB) + 0.3
    assert row["tokens"] == 12 * 8 * (LENGTH - 1)
    assert row["parameters"] == rung.shape.num_parameters
