"""The whole search on a small model: what is returned holds where it was judged, and a second run starts where the first one was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.train.compress.plain_model import Plain
from train.compress.calibrate import matrices, moments
from train.compress.divergence import make_reference
from train.compress.find import allowed, find, judged, offer, probe_of
from train.compress.options import option, parse_options
from train.compress.quantize import load_dense


@pytest.fixture(scope="module")
def ground(tiny_model_dir):
    """(model, probe, offer) with three options, timed as their bits."""
    model = load_dense(tiny_model_dir)
    rows = np.random.default_rng(2).integers(4, 400, (16, 20)).tolist()
    exact = load_dense(tiny_model_dir, torch.float32)
    probe = probe_of(model, make_reference(Plain(exact), [row[:8] for row in rows], [row[8:] for row in rows]))
    choices = parse_options("int8,int4,int2")
    offered = offer(model, probe, choices, moments(model, rows), seconds=lambda choice, rows, columns: choice.bits * rows * columns * 1e-9)
    return model, probe, offered


def test_every_matrix_may_be_kept_and_embeddings_take_8_bits(ground):
    model, _, offered = ground
    options = {matrix.name: {c.option for c in offered.candidates if c.matrix == matrix.name} for matrix in matrices(model)}
    for matrix in matrices(model):
        assert options[matrix.name] == ({"keep", "int8", "int4", "int2"} if matrix.role in ("linear", "head") else {"keep", "int8"})
        assert allowed(matrix, option("int4")) == (matrix.role in ("linear", "head"))


def test_bytes_and_times_are_those_of_the_options(ground):
    model, _, offered = ground
    stored = {matrix.name: matrix for matrix in matrices(model)}
    for candidate in offered.candidates:
        if candidate.option == "keep":
            assert candidate.harm == 0
            assert candidate.bytes == model.get_submodule(candidate.matrix).weight.nbytes
        else:
            assert candidate.bytes == stored[candidate.matrix].stored_bytes(option(candidate.option))
            assert candidate.harm > 0
        assert candidate.seconds == pytest.approx(
            option(candidate.option).bits * model.get_submodule(candidate.matrix).weight.numel() * 1e-9
        )


def test_what_is_found_holds_where_it_was_judged_and_looser_budgets_are_smaller(ground):
    _, probe, offered = ground
    sizes = []
    for budget in (0.001, 0.01, 0.1):
        found = find(offered, probe, {"kl": budget}, held_out=2000, levels=6)
        assert found.met
        assert found.judged.bounds["kl"] <= budget
        assert judged(probe.reference, probe.traces(offered.weights(found.plan)), 2000) == found.judged
        sizes.append(found.bytes)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1


def test_an_interrupted_search_goes_on(ground):
    _, probe, offered = ground
    told = []
    whole = find(offered, probe, {"flips": 0.2}, held_out=2000, levels=5, swaps=1, told=lambda known: told.append(dict(known)))
    before = probe.passes
    again = find(offered, probe, {"flips": 0.2}, held_out=2000, levels=5, swaps=1, known=told[-1])
    assert again.plan == whole.plan
    assert probe.passes == before
    assert len(told) == whole.passes
