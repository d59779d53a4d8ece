"""A measurement is a real step's time, told apart into passes and updates, and it leaves torch as it was."""

from __future__ import annotations

import numpy as np
import torch

from train.corpus import Sequences
from train.plan.measure import measure, threads
from train.plan.shapes import shape_of_width

LENGTH, VOCAB = 32, 400


def sequences(count: int) -> Sequences:
    ids = np.random.default_rng(0).integers(4, VOCAB, (count, LENGTH), dtype=np.uint16)
    return Sequences([ids], [np.ones_like(ids)])


def test_a_sample_is_positive_and_knows_its_shape():
    shape = shape_of_width(96, vocab_size=VOCAB, max_length=LENGTH)
    with threads(1):
        sample = measure(shape, sequences(200), precision="float32", seconds=0.05)
    assert sample.flops_per_token == shape.train_flops_per_token(LENGTH)
    assert sample.seconds_per_token > 0
    assert sample.update_seconds >= 0
    assert 1e7 < sample.flops_per_second < 1e13


def test_fewer_sequences_than_a_micro_batch_are_enough():
    shape = shape_of_width(96, vocab_size=VOCAB, max_length=LENGTH)
    with threads(1):
        assert measure(shape, sequences(3), precision="float32", seconds=0.01).seconds_per_token > 0


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
