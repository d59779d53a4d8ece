from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.elastic.size import Attempt, Machine, crew_of, fruitless, sized, worth_growing
from train.recipe import Recipe

clusters = st.lists(
    st.builds(Machine, st.uuids().map(str), st.integers(0, 8).map(float), st.just(0.0), st.booleans()),
    max_size=6,
    unique_by=lambda m: m.node_id,
)


@given(clusters, st.integers(1, 8), st.integers(1, 3), st.sampled_from([6, 8, 12]))
def test_a_crew_shares_the_batch_evenly_and_fits_on_the_machines_that_stay(machines, wanted, least, batch):
    crew = crew_of(machines, wanted=wanted, least=least, global_batch=batch)
    staying = {m.node_id: m.cpus for m in machines if not m.leaving}
    room = sum(int(cpus) for cpus in staying.values())
    possible = [n for n in range(least, min(wanted, room) + 1) if batch % n == 0]
    if crew is None:
        assert not possible
        return
    assert crew.num_workers == max(possible)
    assert sum(int(staying[node] // crew.cpus) for node in crew.node_ids) >= crew.num_workers
    assert set(crew.left_out) == {m.node_id for m in machines if m.leaving}


def test_workers_get_the_cpus_that_there_are():
    crew = crew_of([Machine("a", 4)], wanted=2, least=1, global_batch=8)
    assert crew is not None
    assert (crew.num_workers, crew.cpus, crew.use_gpu) == (2, 2.0, False)


def test_where_there_are_gpus_each_worker_has_one():
    machines = [Machine("head", 8), Machine("a", 16, 4), Machine("b", 16, 4), Machine("c", 16, 4, leaving=True)]
    crew = crew_of(machines, wanted=12, least=1, global_batch=24)
    assert crew is not None
    assert (crew.num_workers, crew.cpus, crew.use_gpu, crew.node_ids) == (8, 4.0, True, {"a", "b"})


def test_a_run_that_has_had_gpus_waits_for_them():
    left = [Machine("head", 8), Machine("a", 16, 4, leaving=True)]
    assert crew_of(left, wanted=4, least=1, global_batch=4, on_gpus=True) is None
    without = crew_of(left, wanted=4, least=1, global_batch=4)
    assert without is not None
    assert not without.use_gpu
    again = crew_of([*left, Machine("b", 2, 4)], wanted=4, least=1, global_batch=4, on_gpus=True)
    assert again is not None
    assert (again.num_workers, again.node_ids) == (2, {"b"}), "a worker needs a processor, too"


def test_copies_of_the_model_that_span_workers_come_whole():
    crew = crew_of([Machine("a", 7)], wanted=8, least=1, global_batch=6, group=2)
    assert crew is not None
    assert crew.num_workers == 6
    assert crew_of([Machine("a", 1)], wanted=8, least=1, global_batch=6, group=2) is None


@given(st.integers(1, 12), st.integers(1, 6), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_another_number_of_workers_takes_the_same_global_batch(batch_share: int, micro: int, workers: int):
    recipe = Recipe(steps=1, global_batch=12 * batch_share * micro, micro_batch=micro, sequence_length=8, learning_rate=1e-3, num_workers=1)
    other = sized(recipe, workers)
    assert other.micro_batch * other.micro_steps * workers == recipe.global_batch
    assert other.micro_batch <= micro
    assert replace(other, num_workers=1, micro_batch=micro) == recipe


def test_growth_pays_when_what_is_left_is_longer_than_the_restart():
    assert worth_growing(100, 1, 2, {1: 1.0}, restart_s=49.0)[0]
    assert not worth_growing(100, 1, 2, {1: 1.0}, restart_s=51.0)[0]
    assert worth_growing(100, 1, 4, {1: 1.0}, restart_s=51.0)[0]


def attempt(why, start=0, end=0):
    return Attempt(2, start, end, why, "")


@pytest.mark.parametrize(
    ("attempts", "count"),
    [
        ([], 0),
        ([attempt("failed")] * 3, 3),
        ([attempt("failed"), attempt("failed", 0, 5), attempt("failed", 5, 5)], 1),
        ([attempt("failed"), attempt("lost"), attempt("failed")], 2),
        ([attempt("failed"), attempt("left"), attempt("failed")], 1),
        ([attempt("lost")] * 9, 0),
    ],
)
def test_only_failures_that_get_nowhere_are_a_crash_loop(attempts, count):
    assert fruitless(attempts) == count
