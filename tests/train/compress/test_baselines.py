"""The plans of others: what they take first, and when they stop."""

from __future__ import annotations

import doctest

import train.compress.baselines
from train.compress.baselines import accumulated, in_order_of_harm, per_byte, uniform
from train.compress.search import Candidate

SIZES = {"keep": 16, "int8": 8, "int4": 4}
CANDIDATES = [
    Candidate(matrix=m, option=o, bytes=b * (10 if m == "big" else 1), harm=0.0) for m in ("big", "small") for o, b in SIZES.items()
]
HARMS = {("big", "int8"): 0.2, ("big", "int4"): 0.9, ("small", "int8"): 0.1, ("small", "int4"): 0.3}


def size(plan):
    return sum(c.bytes for c in CANDIDATES if plan[c.matrix] == c.option)


def test_the_worked_example():
    assert doctest.testmod(train.compress.baselines).failed == 0


def test_uniform_keeps_what_has_no_such_option():
    assert uniform([*CANDIDATES, Candidate(matrix="norm", option="keep", bytes=1, harm=0)], "int4") == {
        "big": "int4", "small": "int4", "norm": "keep",
    }  # fmt: skip


def test_changes_are_taken_in_order_of_harm_until_it_is_small_enough():
    assert accumulated(CANDIDATES, HARMS, 176, in_order_of_harm) == {"big": "keep", "small": "keep"}
    assert accumulated(CANDIDATES, HARMS, 170, in_order_of_harm) == {"big": "keep", "small": "int8"}
    assert accumulated(CANDIDATES, HARMS, 100, in_order_of_harm) == {"big": "int8", "small": "int8"}
    assert accumulated(CANDIDATES, HARMS, 85, in_order_of_harm) == {"big": "int8", "small": "int4"}


def test_by_the_byte_the_big_one_goes_first():
    assert accumulated(CANDIDATES, HARMS, 170, per_byte) == {"big": "int8", "small": "keep"}


def test_it_ends_where_nothing_is_left():
    assert accumulated(CANDIDATES, HARMS, 3, per_byte) == {"big": "int4", "small": "int4"}


def test_of_options_of_one_size_the_least_harmful_is_taken_and_the_other_passed_over():
    padded = [*CANDIDATES, Candidate(matrix="small", option="padded", bytes=8, harm=0.0)]
    for harm, taken in ((0.05, "padded"), (0.15, "int8")):
        harms = HARMS | {("small", "padded"): harm}
        assert accumulated(padded, harms, 170, in_order_of_harm) == {"big": "keep", "small": taken}
        assert size(accumulated(padded, harms, 3, per_byte)) == 44
