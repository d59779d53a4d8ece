"""Tasks: in order, few at a time, again when their process dies, and a user's mistake stays one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipelines.curate import tasks
from pipelines.curate.tasks import in_tasks


def test_results_are_in_the_order_of_the_items(ray_session):
    def late(item, pause):
        time.sleep(pause * (3 - item))
        return item * 10

    assert in_tasks(late, range(4), 0.05) == [0, 10, 20, 30]
    assert in_tasks(late, [], 1) == []


def test_a_task_that_dies_with_its_process_is_run_again(ray_session, tmp_path):
    def dies_once(item, folder):
        mark = Path(folder, str(item))
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return item

    assert in_tasks(dies_once, range(3), str(tmp_path)) == [0, 1, 2]
    assert len(list(tmp_path.iterdir())) == 3


def test_what_a_task_raises_reaches_the_driver(ray_session):
    def refuses(item):
        raise ValueError(f"{item}: not so")

    with pytest.raises(ValueError, match="7: not so"):
        in_tasks(refuses, [7])


def test_only_a_few_are_under_way(ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "_AHEAD", 1)
    monkeypatch.setattr(tasks, "num_cpus_available", lambda: 2)

    def alone(item, folder):
        (Path(folder) / str(item)).touch()
        seen = len(list(Path(folder).iterdir()))
        time.sleep(0.05)
        (Path(folder) / str(item)).unlink()
        return seen

    assert max(in_tasks(alone, range(8), str(tmp_path))) <= 2
