"""The memory sampler sees what a child process holds."""

import subprocess
import sys

from pipelines.footprint import measured

HOLD = "block = bytearray(b'x') * (200 * 2**20)\nprint('held', flush=True)\ninput()"


def test_a_childs_memory_counts():
    with measured(every_s=60) as footprint:
        before = footprint.sample()
        child = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "held\n"
        during = footprint.sample()
        child.communicate("\n")
        after = footprint.sample()
    assert 200 * 2**20 <= during - before < 300 * 2**20
    assert after - before < 50 * 2**20
    assert footprint.peak_bytes >= during
