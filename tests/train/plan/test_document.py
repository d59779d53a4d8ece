"""plan.toml: what pretrain reads is a shape and a recipe, all else is said beside it, and nothing in it is no TOML."""

import json
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tomli_w

from tests.train.plan.test_budget import DATA, fleet, machine
from tests.train.plan.test_explain import planned
from tests.train.plan.test_outlook import own_law
from train.plan.document import describe, document
from train.plan.shapes import ModelShape
from train.recipe import Recipe


def written(made, measured=None):
    return tomllib.loads(tomli_w.dumps(document(made, measured or {})))


@pytest.mark.parametrize("here", [machine(), fleet()], ids=["here", "rented"])
def test_model_and_recipe_are_read_back_as_they_were_chosen(here):
    made = planned("hours=2", here, DATA)
    plan = written(made)
    assert ModelShape.from_table(plan["model"]) == made.best.shape
    plan["train"].pop("tokens")
    assert Recipe(**plan["train"]) == made.best.recipe
    assert plan["machines"]["measured"] is here.measured
    assert ("speed" in plan["machines"]) is here.accelerated
    assert ("dollars_spot" in plan["predicted"]) is here.accelerated


def test_a_law_of_ones_own_is_told_with_its_coefficients(tmp_path):
    made = planned("hours=2", machine(), DATA, law=own_law(tmp_path, "excluded"))
    plan = written(made)
    assert plan["law"]["source"] == "runs/law"
    assert plan["law"]["coefficients"]["alpha"] == pytest.approx(0.3478)
    assert plan["law"]["N"] == made.best.shape.num_parameters - made.best.shape.num_embedding_parameters
    assert plan["law"]["N_includes_embeddings"] is False


def test_the_headline_says_what_serving_takes_beyond_the_budget():
    draft = SimpleNamespace()
    describe(draft, planned("hours=48", fleet(), serve_tokens=1e13))
    over = written(planned("hours=48", fleet(), serve_tokens=1e13))["serving"]["training_over_budget"]
    assert f"{over:.3g} times the budget, for the sake of serving" in draft.headline
    describe(draft, planned("hours=48", fleet()))
    assert "times the budget" not in draft.headline


def test_a_doubled_budget_that_cannot_be_spent_says_why():
    made = replace(planned("hours=2", machine(), DATA), doubled="budget: too much")
    assert written(made)["budget"]["doubled"] == {"refused": "budget: too much"}


def test_what_was_measured_is_told_as_it_is():
    assert written(planned("hours=2", machine(), DATA), {"processor": "x"})["measured"] == {"processor": "x"}
    assert json.dumps(written(planned("hours=2", machine(), DATA)))
