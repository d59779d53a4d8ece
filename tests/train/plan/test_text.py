"""What a tokens folder offers, by its own account."""

import pytest

from cluster.artifact import open_artifact
from tests.train.plan.test_run import LENGTH, VOCAB, write_tokens
from train.plan.text import data_of


def test_the_manifests_figures_and_how_far_the_text_shrinks(tmp_path, tiny_model_dir):
    data = data_of(open_artifact(write_tokens(tmp_path / "tokens", tiny_model_dir, padding_share=0.1), made_by="tokenize"))
    assert (data.num_sequences, data.sequence_length, data.vocab_size) == (400, LENGTH, VOCAB)
    assert data.num_tokens == pytest.approx(0.9 * 400 * LENGTH)
    assert 2 < data.zstd_bits_per_byte <= 8, "random tokens hardly shrink"
