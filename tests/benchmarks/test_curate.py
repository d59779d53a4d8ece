"""The benchmark of curation: its text is this machine's, the same each time, a share of it is like the whole; peaks are seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import curate
from benchmarks.curate import Peak, write_text


def rows(folder):
    return {row["id"]: row["text"] for file in sorted(folder.glob("*.jsonl")) for row in map(json.loads, file.open())}


def test_the_text_is_the_same_each_time_and_the_quarter_is_of_the_whole(tmp_path):
    told = write_text(tmp_path / "a", 1)
    assert write_text(tmp_path / "a", 1) == told == write_text(tmp_path / "b", 1)
    for name in ("whole", "quarter"):
        texts = [[file.read_bytes() for file in sorted((tmp_path / run / name).iterdir())] for run in "ab"]
        assert texts[0] == texts[1]
        assert sum(map(len, texts[0])) == told[name]["bytes"]
    whole, quarter = rows(tmp_path / "a" / "whole"), rows(tmp_path / "a" / "quarter")
    assert (len(whole), len(quarter)) == (told["whole"]["documents"], told["quarter"]["documents"])
    assert len(quarter) == -(-len(whole) // 4) > 5
    assert 1_000_000 <= told["whole"]["bytes"] < 1_300_000
    assert quarter.items() <= whole.items()


def test_a_peak_is_the_most_of_a_process_and_its_children(tmp_path):
    child = "b = bytearray(b'x' * (60 << 20)); import time; time.sleep(0.6); del b; time.sleep(0.5)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", script])
    peak = Peak(process.pid, tmp_path)
    peak.start()
    assert process.wait() == 0
    peak.stop()
    assert 60 << 20 < peak.bytes < 160 << 20
    assert peak.spilled == 0


def test_what_is_spilled_counts_and_what_is_staged_is_told(tmp_path):
    (tmp_path / "session" / "ray_spilled_objects_1").mkdir(parents=True)
    (tmp_path / "session" / "ray_spilled_objects_1" / "a").write_bytes(bytes(1 << 20))
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "piece").write_bytes(bytes(1 << 10))
    peak = Peak(os.getpid(), tmp_path / "session", tmp_path / "out.partial")
    peak.start()
    while not peak.staged:
        pass
    peak.stop()
    assert (peak.spilled, peak.staged) == (1 << 20, 1 << 10)
    assert peak.bytes > 1 << 20


def test_without_the_peer_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(curate, "PEER", Path("/no/such/python"))
    with pytest.raises(SystemExit, match="run `make peers-curate`"):
        curate.beside(tmp_path, tmp_path, filters=True)


def test_growth_counts_all_work_and_both_parts_add_up():
    metrics = {"seconds": {"documents": 3.0, "write": 0.5}, "task_seconds": {"read": 1.0, "quality": 4.0}, "bytes_in": 10}
    told = {"metrics": metrics | {"compare_seconds": {"sets": 0.25}}}
    assert curate._spent(told) == {"seconds": 3.5, "task_seconds": 5.75, "bytes": 10}
    speed, dedup = ({"ours_s": [own - 1, own + 1], "datatrove_s": other} for own, other in ((10, 60), (20, 60)))
    assert curate._together(speed, dedup) == {"ours_s": 30, "datatrove_s": 120, "ratio": 4}
