from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

from train.job import Job, Orders
from train.recipe import Recipe


def test_orders_reach_the_workers_as_they_were_given():
    recipe = Recipe(steps=3, global_batch=2, micro_batch=1, sequence_length=8, learning_rate=1e-3)
    job = Job(label="test", recipe=recipe, folder="f", build=dict, source=list, export=partial(Path, "x"))
    orders = Orders(job=job, recipe=recipe, key=b"k", attempt="a", saved=None, num_threads=1)
    again = pickle.loads(pickle.dumps(orders))
    assert again.job.recipe == recipe
    assert (again.job.build, again.job.export("y"), again.attempt) == (dict, Path("x/y"), "a")
