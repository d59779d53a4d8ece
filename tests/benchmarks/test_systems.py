"""Workers: one protocol, driven by arrivals; what is not there is named and harms nobody; figures become a table."""

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import report, rounds
from benchmarks.bandwidth import read_bandwidth
from benchmarks.systems import NotThere, Spec, Worker
from benchmarks.workers.protocol import Question, drive


class Counting:
    """Says 0, 1, 2, … to every request, one token a step."""

    def __init__(self) -> None:
        self.live: dict[int, list[int]] = {}

    def add(self, index: int, question: Question) -> None:
        self.live[index] = [0, question.tokens]

    def step(self):
        time.sleep(0.001)
        for index in list(self.live):
            said, most = self.live[index]
            self.live[index][0] += 1
            if said + 1 == most:
                del self.live[index]
            yield index, [said], said + 1 == most


def test_requests_arrive_when_they_should():
    asked = [Question(prompt=[1], tokens=3), Question(prompt=[1], tokens=2, at=0.05), Question(prompt=[1], tokens=1, at=0.02)]
    began = time.perf_counter()
    answers = drive(Counting(), asked)
    assert time.perf_counter() - began >= 0.05
    assert [a.tokens for a in answers] == [[0, 1, 2], [0, 1], [0]]
    assert all(t > 0 and a.times == sorted(a.times) for a in answers for t in a.times)


def spec(name: str, **fields) -> Spec:
    common = {
        "module": "benchmarks.workers.sterna",
        "python": Path(sys.executable),
        "needs": "torch",
        "environment": {"OMP_NUM_THREADS": "1"},
    }
    return Spec(name=name, **{**common, **fields})


def test_our_engine_as_a_worker(tiny_model_dir: Path):
    worker = Worker(spec("sterna", options={"draft": "off", "num_threads": 1, "max_sequences": 2}), tiny_model_dir)
    try:
        plan = {"batches": [1, 2], "prompt": 20, "output": 6, "threads": 1, "repeats": 2}
        tokens = rounds.code_tokens(tiny_model_dir, None, 300, 40, seed=0)
        assert rounds.warm_up([worker], tokens, [1], 20) == {}
        one = rounds.one_round(0, [worker], tokens, plan, step_bytes=1 << 20)
        assert one["agreement"] == {"sterna": 1.0}
        assert one["figures"]["sterna"]["2"]["tokens_per_s"] > 0
        assert worker.cold_start_s > 0
        assert worker.peak_rss >= worker.peak_pss > 10e6
        systems = {"sterna": {"cold_start_s": worker.cold_start_s, "peak_rss": worker.peak_rss, "step_bytes": 1 << 20}}
        result = {
            "model": "tiny",
            "plan": plan,
            "rounds": [one, one],
            "systems": systems,
            "missing": {"x": "x: gone"},
            "step_bytes": 1 << 20,
        }
        shown = report.table(result)
        assert "x: gone" in shown
        assert len([line for line in shown.splitlines() if " sterna " in line]) == 2
    finally:
        worker.close()
    assert not worker.alive


def test_what_is_not_there_is_named(tmp_path: Path):
    missing = Worker(spec("vllm", python=tmp_path / "python"), tmp_path)
    broken = Worker(spec("sterna"), tmp_path)
    found = rounds.warm_up([missing, broken], [5] * 8, [1], 4)
    assert "make peers" in found["vllm"]
    assert "config.json" in found["sterna"]
    with pytest.raises(NotThere):
        missing.start()


def test_targets_are_judged():
    figures = lambda speed: {"1": {"tokens_per_s": speed, "gap_p50_s": 0.01}}  # noqa: E731
    each = {
        "bandwidth_ram": 1e9,
        "bandwidth_here": 2e9,
        "figures": {"sterna": figures(30.0), "vllm": figures(20.0), "transformers": figures(25.0)},
    }
    systems = {name: {"step_bytes": 10_000_000} for name in each["figures"]}
    result = {"model": "m", "plan": {"batches": [1]}, "rounds": [each] * 3, "systems": systems}
    assert [line.split()[0] for line in report.targets(result)] == ["met", "MISSED"]
    assert report.rows(result)[0]["floor_share"] == pytest.approx(0.5)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="flags of the little kernel are x86's")
def test_bandwidth_is_plausible():
    assert 1e8 < read_bandwidth(1 << 24, threads=1) < 1e13
