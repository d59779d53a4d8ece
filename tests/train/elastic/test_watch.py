from __future__ import annotations

import json
import threading
import time

import pytest
from ray.experimental import internal_kv

from train.elastic.watch import Figures, Group, news_of, watched
from train.elastic.worker import GROW, NAMESPACE, UP
from train.job import Job
from train.recipe import Recipe

RECIPE = Recipe(steps=1000, global_batch=4, micro_batch=1, sequence_length=8, learning_rate=1e-3, num_workers=2)


def job(growth: str) -> Job:
    return Job(label="test", recipe=RECIPE, folder="f", build=dict, source=list, export=print, growth=growth)


def tell(key: bytes, **news: object) -> None:
    internal_kv._internal_kv_put(key, json.dumps(news).encode(), overwrite=True, namespace=NAMESPACE)


def within(seconds: float, true) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        threading.Event().wait(0.05)
    return True


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("growth", "step_s", "grows"), [("worth", 1.0, True), ("worth", 1e-4, False), ("always", 1e-4, True), ("never", 1.0, False)]
)
def test_a_group_is_told_to_grow_when_that_pays(growth: str, step_s: float, grows: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("train.elastic.watch._POLL_S", 0.02)
    key = f"test-{growth}-{step_s}".encode()
    figures = Figures(restart_s=10.0)
    steps = iter(range(1, 1000))

    def train() -> bool:
        tell(key, step=next(steps), loss=2.0, rate=100.0, seconds=step_s, note="", undone=[])
        return internal_kv._internal_kv_get(key + GROW, namespace=NAMESPACE) is not None

    with watched(Group(job(growth), key, 1, 0, lambda: 2, figures)):
        tell(key + UP, at_s=time.time() + 30)
        assert within(10.0 if grows else 0.5, train) == grows
    assert 25 < figures.restart_s < 31


@pytest.mark.usefixtures("ray_session")
def test_what_a_group_said_is_forgotten_when_the_next_begins():
    key = b"test-forget"
    tell(key, step=7, loss=2.0, rate=1.0, seconds=1.0, note="", undone=[])
    with watched(Group(job("never"), key, 2, 0, lambda: 2, Figures())):
        assert news_of(key) is None
