"""The measured read bandwidth: plausible, and without a trace in the process that measures."""

from __future__ import annotations

from benchmarks.bandwidth import read_bandwidth


def test_a_small_buffer_is_read_faster_than_a_floppy_disk_and_slower_than_light():
    assert 1e8 < read_bandwidth(1 << 20, threads=1) < 1e13


def test_subnormal_numbers_survive_it():
    read_bandwidth(1 << 16, threads=1)
    smallest = 5e-324
    assert smallest * 1.0 > 0.0
