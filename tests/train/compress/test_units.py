"""Blocks as units: nothing better is lost by choosing inside them first, and what is chosen comes apart again."""

from __future__ import annotations

import doctest
import itertools
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.compress import units
from train.compress.search import Candidate
from train.compress.units import Drop, apart, joined

SIZES, HARMS = st.integers(0, 1000), st.floats(0, 1, allow_subnormal=False)


@st.composite
def blocks(draw):
    """(candidates by matrix, drops of some of the matrices)."""
    names = [f"m{i}" for i in range(draw(st.integers(1, 4)))]
    found = {
        name: [
            Candidate(matrix=name, option=f"o{at}", bytes=draw(SIZES), seconds=draw(HARMS), harm=draw(HARMS))
            for at in range(draw(st.integers(1, 3)))
        ]
        for name in names
    }
    gone = [tuple(names[: draw(st.integers(1, len(names)))]) for _ in range(draw(st.integers(0, 2)))]
    drops = [
        Drop(option=f"drop{at}", matrices=each, harm=draw(HARMS), bytes=draw(SIZES), seconds=draw(HARMS)) for at, each in enumerate(gone)
    ]
    return found, drops


def everything(found, drops):
    """(bytes, seconds, harm) of every combination."""
    for drop in (None, *drops):
        rest = [each for name, each in found.items() if not (drop and name in drop.matrices)]
        for chosen in itertools.product(*rest):
            parts = [*chosen, *([drop] if drop else [])]
            yield sum(each.bytes for each in parts), sum(each.seconds for each in parts), sum(each.harm for each in parts)


@given(blocks(), st.sampled_from(["bytes", "latency"]))
def test_the_best_of_every_size_is_there(block, objective):
    found, drops = block
    cost = 0 if objective == "bytes" else 1
    all_of_it = list(everything(found, drops))
    candidates = joined("u", found, drops, objective)
    costs = [(each.bytes, each.seconds)[cost] for each in candidates]
    assert costs == sorted(costs, reverse=True)
    harms = [each.harm for each in candidates]
    assert harms == sorted(harms)
    assert harms[0] == pytest.approx(min(row[2] for row in all_of_it))
    slack = len(found) * (max(row[cost] for row in all_of_it) - min(row[cost] for row in all_of_it)) / 256
    for row in all_of_it:
        assert any(c <= row[cost] + slack + 1e-9 and h <= row[2] + 1e-9 for c, h in zip(costs, harms, strict=True))


@given(blocks())
def test_a_candidate_is_the_sum_of_what_it_comes_apart_into(block):
    found, drops = block
    known = {(name, each.option): each for name, group in found.items() for each in group}
    dropped = {drop.option: drop for drop in drops}
    for candidate in joined("u", found, drops, "bytes"):
        chosen = apart({"u": candidate.option}, {"u": list(found)})
        gone = {option for option in chosen.values() if option in dropped}
        assert len(gone) <= 1
        parts = [known[pair] for pair in chosen.items() if pair in known] + [dropped[option] for option in gone]
        assert all(chosen[name] == option for option in gone for name in dropped[option].matrices)
        for what in ("bytes", "seconds", "harm"):
            assert getattr(candidate, what) == pytest.approx(sum(getattr(each, what) for each in parts))


def test_the_worked_example():
    assert doctest.testmod(units).failed == 0


def test_it_is_pure():
    code = "import sys, train.compress.units; print({'ray', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
