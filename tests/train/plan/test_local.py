"""This machine, measured: what is written is read back as a rate, and nothing is left behind."""

from train.plan.local import written_per_second


def test_the_disk_is_timed_and_left_clean(tmp_path):
    assert 1e6 < written_per_second(tmp_path) < 1e12
    assert not list(tmp_path.iterdir())
