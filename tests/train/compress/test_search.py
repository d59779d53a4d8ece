"""The search against judges whose truth is known: budgets are kept, looser ones never cost more, nothing is judged twice."""

from __future__ import annotations

import doctest
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import train.compress.search
from train.compress.search import Candidate, Judged, at_bytes, plan_key, search

OPTIONS = {"keep": (1600, 0.0), "int8": (800, 1e-5), "int4": (420, 1e-3), "int3": (320, 6e-3)}


def candidates(num=8, seed=0, wrong=0.0):
    """Matrices of unequal harm, and harms that are wrong by a factor of exp(±wrong)."""
    rng = np.random.default_rng(seed)
    factors, errors = np.exp(rng.normal(0, 1.5, num)), np.exp(wrong * rng.normal(size=(num, len(OPTIONS))))
    return [
        Candidate(matrix=f"m{i}", option=name, bytes=size, seconds=size * 1e-9, harm=harm * factors[i] * errors[i, j], reason="made up")
        for i in range(num)
        for j, (name, (size, harm)) in enumerate(OPTIONS.items())
    ]


class Truth:
    """Judges by harms of its own, flips as the root of the KL with a wobble from plan to plan, as on a sample of prompts."""

    def __init__(self, harms, wobble=0.0):
        self.harms, self.wobble, self.asked = harms, wobble, []

    def __call__(self, plan):
        self.asked.append(plan_key(plan))
        kl = sum(self.harms[pair] for pair in plan.items())
        noise = np.random.default_rng(zlib.crc32(plan_key(plan).encode())).normal()
        flips = 0.4 * kl**0.5 * np.exp(self.wobble * noise)
        return Judged({"flips": flips, "kl": kl}, {"flips": flips * 1.1, "kl": kl * 1.1})


def truth(seed=0, wobble=0.0, factor=1.2):
    return Truth({(c.matrix, c.option): c.harm * factor for c in candidates(seed=seed)}, wobble)


def test_the_worked_example():
    assert doctest.testmod(train.compress.search).failed == 0


def test_nothing_heavy_is_imported():
    code = "import sys, train.compress.search; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@given(st.integers(0, 20), st.floats(0, 0.4), st.lists(st.floats(1e-4, 0.3), min_size=2, max_size=5), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_monotone_budgets_give_monotone_bytes(seed, wobble, budgets, swaps):
    judge = truth(seed, wobble)
    found = [search(candidates(seed=seed, wrong=0.3), judge, {"flips": b}, levels=7, swaps=swaps) for b in sorted(budgets, reverse=True)]
    sizes = [each.bytes for each in found]
    assert sizes == sorted(sizes)
    for each, budget in zip(found, sorted(budgets, reverse=True), strict=True):
        assert each.met == (each.judged.bounds["flips"] <= budget)
        assert each.judged == judge(each.plan)


def test_it_is_close_to_the_best_there_is_when_the_harms_are_true():
    judge, made = truth(factor=1.0), candidates()
    found = search(made, judge, {"kl": 0.004}, levels=10, swaps=4)
    best = at_bytes(made, found.bytes - 40)
    assert sum(c.harm for c in made if best[c.matrix] == c.option) * 1.1 > 0.004
    assert set(found.plan.values()) - {"keep"}
    assert "nats" in found.reasons["m0"]


def test_passes_are_bounded_and_an_interrupted_search_asks_only_for_the_rest():
    judge = truth(wobble=0.2)
    whole = search(candidates(), judge, {"flips": 0.02}, levels=8, swaps=3)
    assert len(judge.asked) == len(set(judge.asked)) == whole.passes <= 1 + 8 + 3
    half, again = dict(list(whole.known.items())[:5]), truth(wobble=0.2)
    assert search(candidates(), again, {"flips": 0.02}, levels=8, swaps=3, known=half).plan == whole.plan
    assert set(again.asked) == set(judge.asked) - set(half)


def test_an_impossible_budget_gives_the_least_harmful_plan_and_says_so():
    dull = [c for c in candidates() if c.option != "keep"]
    found = search(dull, Truth({(c.matrix, c.option): c.harm for c in dull}), {"kl": 1e-9})
    assert not found.met
    assert set(found.plan.values()) == {"int8"}


def test_swaps_use_what_the_ladder_leaves():
    made, judge = candidates(), truth(factor=1.0)
    coarse = search(made, judge, {"kl": 0.004}, levels=3)
    finer = search(made, judge, {"kl": 0.004}, levels=3, swaps=6)
    assert finer.met
    assert finer.bytes < coarse.bytes


def test_latency_is_another_objective():
    made = [c if c.option != "int3" else Candidate(**{**_fields(c), "seconds": 1.0}) for c in candidates()]
    found = search(made, truth(), {"kl": 0.05}, objective="latency")
    assert "int3" not in found.plan.values()
    assert "int3" in search(made, truth(), {"kl": 0.05}).plan.values()


def _fields(candidate):
    return {name: getattr(candidate, name) for name in ("matrix", "option", "bytes", "seconds", "harm", "reason")}


def test_a_metric_without_figures_is_refused():
    with pytest.raises(ValueError, match="no metric 'speed'; give one of flips, kl"):
        search(candidates(), truth(), {"speed": 1.0})


def test_at_bytes_is_the_least_harm_in_that_size():
    made = candidates()
    small = sum(320 for _ in range(8))
    assert at_bytes(made, small - 1) is None
    assert set(at_bytes(made, small).values()) == {"int3"}
    assert set(at_bytes(made, 8 * 1600).values()) == {"keep"}
