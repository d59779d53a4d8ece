"""Curation under fire: processes, a node or the driver are killed in the middle, and the corpus is what it would have been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
WORDS = "the of and tern sea ice wind flies north south year egg fish nest wing light storm coast island winter".split()  # noqa: SIM905


def write_input(folder, count=240):
    """Originals, near-copies and copies of them, under a common notice, in eight files."""
    pick = random.Random(0)
    texts = [" ".join(" ".join(pick.choices([*WORDS, str(n)], k=9)).capitalize() + "." for _ in range(14)) for n in range(count // 2)]
    while len(texts) < count:
        words = pick.choice(texts).split()
        if pick.random() < 0.8:
            words[pick.randrange(len(words))] = "changed"
        texts.append(" ".join(words))
    for number in range(8):
        lines = [json.dumps({"text": f"{text}\n\n{' '.join(WORDS)}"}) for text in texts[number::8]]
        (folder / f"{number}.jsonl").write_text("\n".join(lines))


@pytest.fixture
def input_dir(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_input(folder)
    return folder


def content(output):
    """Kept and dropped, whatever files they are in."""
    found = [(part, row) for part in ("kept", "dropped") for f in (output / part).glob("*.parquet") for row in pq.read_table(f).to_pylist()]
    return sorted(found, key=lambda entry: entry[1]["id"])


def under_fire(source, folder, partitions, kills, seed=0, timeout=280):
    script = ROOT / "tests" / "chaos" / "curate_run.py"
    command = [sys.executable, *map(str, (script, source, folder, partitions, kills, "--seed", seed))]
    environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


def check(found, kills):
    assert found["storm"] == found["calm"]
    assert found["executed_again"] >= max(5, kills), found
    assert sum(found["killed"].values()) == kills
    assert found["nodes_killed"] == 1
    assert found["rounds"] > 0
    assert sum(found["calm"][1].values()) == 240
    assert min(found["calm"][1].values()) > 50, "some kept, some dropped"
    assert all(name.endswith(".parquet") for name in found["files"])


def test_processes_and_a_node_killed_change_nothing(input_dir, tmp_path):
    check(under_fire(input_dir, tmp_path / "run", partitions=8, kills=6), kills=6)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_nor_do_many_with_1_2_and_8_partitions(input_dir, tmp_path):
    """And the corpora are equal among themselves."""
    found = {n: under_fire(input_dir, tmp_path / str(n), n, 12, seed=n, timeout=480) for n in (1, 2, 8)}
    for each in found.values():
        check(each, kills=12)
    print({partitions: (each["executed_again"], each["kinds_again"]) for partitions, each in found.items()})
    assert found[1]["storm"] == found[2]["storm"] == found[8]["storm"]


STAGES = ("staged/summary", "staged/edges-0", "staged/shelf", "staged/fates", "kept", "signatures")
"""What a run leaves behind on its way, in this order."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_driver_killed_again_and_again_goes_on_to_the_same_corpus(input_dir, tmp_path):
    def curate(name):
        settings = ["--num-partitions", "4", "--task-bytes", "30000", "--driver-bytes", "1", "--paragraphs"]
        command = [sys.executable, "-m", "sterna", "curate", str(input_dir), "--output", str(tmp_path / name), *settings]
        environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    calm = curate("calm")
    assert calm.wait(200) == 0, calm.stderr.read()[-2000:]
    for stage in STAGES:
        run = curate("storm")
        while not (tmp_path / "storm.partial" / stage).exists():
            assert run.poll() is None, f"ended before {stage}: {run.stderr.read()[-2000:]}"
        run.send_signal(signal.SIGKILL)
        run.wait(60)
    last = curate("storm")
    assert last.wait(200) == 0, last.stderr.read()[-2000:]
    assert content(tmp_path / "storm") == content(tmp_path / "calm")
    assert not (tmp_path / "storm.partial").exists()
