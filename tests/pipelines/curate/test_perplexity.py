"""The character model: its probabilities add up to one, and it knows its own kind of text from others."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate import perplexity
from pipelines.curate.normalize import clean
from pipelines.curate.perplexity import held_out_perplexities, train

WORDS = "the of and tern sea ice wind flies north south year egg fish nest wing light storm coast island winter".split()  # noqa: SIM905
PROSE = "\n".join(" ".join(random.Random(line).choices(WORDS, k=12)).capitalize() + "." for line in range(400))
MODEL = train([PROSE])


def test_probabilities_add_up_to_one_in_every_context():
    total = np.exp2(-MODEL.costs.astype(np.float64) / 1024).reshape(-1, perplexity._SYMBOLS).sum(axis=1)
    assert np.abs(total - 1).max() < 0.01  # costs are rounded to 1/1024 bit


def test_a_perplexity_is_two_to_the_mean_cost_of_the_characters():
    text = "The tern flies.\nSea"
    symbols = [int(MODEL.symbols[ord(c)]) for c in "\n\n\n" + text.lower()]
    costs = [int(MODEL.costs[((a * 48 + b) * 48 + c) * 48 + d]) for a, b, c, d in zip(*(symbols[k:] for k in range(4)), strict=False)]
    assert len(costs) == len(text)
    assert MODEL.perplexities([text])[0] == pytest.approx(2 ** (sum(costs) / 1024 / len(text)), abs=1e-6)


def test_other_text_is_stranger_the_less_it_is_alike():
    fresh = " ".join(random.Random(0).choices(WORDS, k=60))
    french = "la sterne arctique est un petit oiseau qui vole chaque année d'un bout de la terre à l'autre"
    soup = "".join(random.Random(1).choices("qxzjkvwp0123456789#@", k=300))
    found = MODEL.perplexities([PROSE, fresh, french, soup]).tolist()
    assert max(found[:2]) < 4 < 12 < found[2] < found[3]


@settings(deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_a_perplexity_does_not_depend_on_the_company(texts):
    assert MODEL.perplexities(texts).tolist() == [MODEL.perplexities([text])[0] for text in texts]


def test_an_empty_text_has_none_and_no_text_none():
    assert MODEL.perplexities(["", "the"]).tolist()[0] == math.inf
    assert MODEL.perplexities([]).tolist() == []


def test_training_does_not_depend_on_the_groups(monkeypatch):
    lines = [*PROSE.split("\n"), ""]
    whole = train(lines)
    monkeypatch.setattr("pipelines.curate.spans._GROUP_CHARS", 1000)
    assert (train(lines).costs == whole.costs).all()


def test_the_most_frequent_characters_have_symbols_of_their_own_in_any_script():
    model = train(["крачка летит над морем на юг " * 300])
    near, far = model.perplexities(["морем летит крачка", "щъыэ фцхж"])
    assert near < 6 < 20 < far


def test_held_out_pieces_are_stranger_than_those_it_learnt_from(data_dir):
    text = clean((data_dir / "docs" / "wiki-sample.txt").read_text())[:300_000]
    held_out, own = held_out_perplexities([text]), train([text]).perplexities([text])[0]
    assert own < np.median(held_out) < 12
    assert len(held_out) == 75
