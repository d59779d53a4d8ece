"""What is worked out before the search is worked out once, and is the same when it is read as when it was made."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.train.compress.plain_model import Plain
from train.compress import find
from train.compress.calibrate import moments
from train.compress.candidates import degraded
from train.compress.divergence import make_reference
from train.compress.options import option, parse_options
from train.compress.quantize import load_dense
from train.compress.shelf import Shelf
from train.compress.store import Store


def never(*_, **__):
    raise AssertionError("worked out twice")


@pytest.fixture(scope="module")
def ground(tiny_model_dir):
    """(model, probe, moments)."""
    model = load_dense(tiny_model_dir)
    rows = np.random.default_rng(3).integers(4, 400, (8, 16)).tolist()
    reference = make_reference(Plain(load_dense(tiny_model_dir, torch.float32)), [row[:8] for row in rows], [row[8:] for row in rows])
    return model, find.probe_of(model, reference), moments(model, rows)


def test_a_variant_is_made_once_and_read_as_it_was(tmp_path):
    weight, four = torch.randn(32, 64), option("int4")
    made = degraded(weight, four, None)
    for shelf in (Shelf(), Shelf(Store(tmp_path), "a")):
        assert torch.equal(shelf.variant("q", four, lambda: made).dense, made.dense)
    found = Shelf(Store(tmp_path), "a").variant("q", four, never)
    assert found.option == four
    assert torch.equal(found.dense, made.dense)
    for other in (("k", four, "a"), ("q", option("int8"), "a"), ("q", four, "b")):
        with pytest.raises(AssertionError, match="worked out twice"):
            Shelf(Store(tmp_path), other[2]).variant(other[0], other[1], never)


def test_tables_are_kept_by_pair_and_key(tmp_path):
    rows = {("a.b", "int4"): [0.5, 0.1], ("a.b", "int8"): [0.25, 0.1], ("c", "int4"): [1.0, 0.0]}
    shelf = Shelf(Store(tmp_path), "model")
    assert shelf.read("scores", 1) == {}
    shelf.write("scores", 1, rows)
    assert shelf.read("scores", 1) == Shelf(Store(tmp_path), "model").read("scores", 1) == rows
    assert shelf.read("scores", 2) == shelf.read("alone", 1) == Shelf(Store(tmp_path), "other").read("scores", 1) == {}
    Shelf().write("scores", 1, rows)
    assert Shelf().read("scores", 1) == {}


def test_a_second_offer_makes_nothing_and_another_option_only_itself(ground, tmp_path, monkeypatch):
    model, probe, known = ground
    plain = find.offer(model, probe, parse_options("int8,int4"), known)
    first = find.offer(model, probe, parse_options("int8,int4"), known, shelf=Shelf(Store(tmp_path), "m"))
    assert first.candidates == plain.candidates
    with monkeypatch.context() as patched:
        for name in ("degraded", "scores"):
            patched.setattr(find, name, never)
        passes = probe.passes
        again = find.offer(model, probe, parse_options("int8,int4"), {}, shelf=Shelf(Store(tmp_path), "m"))
        assert probe.passes == passes
    assert again.candidates == plain.candidates
    plan = {each.matrix: each.option for each in plain.candidates}
    weights = plain.weights(plan)
    assert all(torch.equal(weight, weights[name]) for name, weight in again.weights(plan).items())
    made, degrade = [], find.degraded
    monkeypatch.setattr(find, "degraded", lambda weight, choice, seen: made.append(choice.name) or degrade(weight, choice, seen))
    more = find.offer(model, probe, parse_options("int8,int4,int3"), known, shelf=Shelf(Store(tmp_path), "m"))
    assert set(made) == {"int3"}
    whole = find.offer(model, probe, parse_options("int8,int4,int3"), known)
    assert [(c.matrix, c.option, c.bytes) for c in more.candidates] == [(c.matrix, c.option, c.bytes) for c in whole.candidates]
    assert [c.harm for c in more.candidates] == pytest.approx([c.harm for c in whole.candidates], rel=1e-4)


def test_an_interrupted_offer_goes_on_with_the_next_variant(ground, tmp_path, monkeypatch):
    model, probe, known = ground
    made, degrade = [], find.degraded

    def stopped(*given):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(given)
        return degrade(*given)

    with monkeypatch.context() as patched:
        patched.setattr(find, "degraded", stopped)
        with pytest.raises(KeyboardInterrupt):
            find.offer(model, probe, parse_options("int4"), known, shelf=Shelf(Store(tmp_path), "m"))
    count = []
    monkeypatch.setattr(find, "degraded", lambda *given: count.append(1) or degrade(*given))
    whole = find.offer(model, probe, parse_options("int4"), known, shelf=Shelf(Store(tmp_path), "m"))
    assert len(count) + 3 == sum(map(len, whole.variants.values()))
