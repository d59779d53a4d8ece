"""The long run, short: an episode on each kind of engine, and verdicts that can fail."""

from pathlib import Path

import numpy as np

from benchmarks.mixed import Account, Mixed
from benchmarks.soak import read_texts, slope, verdicts


def test_an_episode_leaves_nothing_behind(models_dir: Path, data_dir: Path):
    model = models_dir / "tiny-code"
    mixed = Mixed(model, read_texts(model, data_dir / "code/HumanEval.jsonl.gz"), seed=3, threads=1)
    for _ in range(2):
        mixed.episode()
    account = mixed.account
    assert account.requests > 0
    assert account.compared > 0
    assert len(account.waits_s) <= account.requests - account.cancelled


def test_a_leak_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    at = np.arange(0, 1800, 10.0)
    steady = [(float(t), 500 + float(rng.normal(0, 1))) for t in at]
    leaking = [(t, mb + t / 60) for t, mb in steady]  # a megabyte a minute
    late = [(t, mb - (100 * (1 - t / 300) if t < 300 else 0)) for t, mb in steady]  # grows at first, then stands
    account = Account(waits_s=[0.1])
    assert verdicts(account, slope(steady), native=True)["no leak"]
    assert not verdicts(account, slope(leaking), native=True)["no leak"]
    assert verdicts(account, slope(late), native=True)["no leak"]


def test_a_single_difference_breaks_the_promise_of_our_own_kernels():
    account = Account(waits_s=[0.1], compared=100, different=["r1"])
    flat = {"low": -1.0, "growth": 0.0}
    assert not verdicts(account, flat, native=True)["undisturbed tokens"]
    assert verdicts(account, flat, native=False)["undisturbed tokens"]
    assert not verdicts(Account(waits_s=[1e9]), flat, native=True)["no starvation"]
