"""Serving: the more is served, the smaller the model and the longer its training, for the same loss and a smaller sum."""

import pytest

from tests.train.plan.test_budget import TARIFF, WEB, fleet
from train.plan.budget import decide, possible_shapes
from train.plan.config import Budget
from train.plan.outlook import Outlook
from train.plan.price import Market
from train.plan.serving import for_serving

MARKET = Market(tariff=TARIFF)


@pytest.fixture(scope="module")
def optimal():
    return decide(WEB, Budget(seconds=48 * 3600), fleet(), market=MARKET)[0]


def served(optimal, tokens):
    shapes = possible_shapes(WEB, None, "dense")
    return for_serving(optimal, shapes, tokens, WEB, fleet(), outlook=Outlook(), market=MARKET)


def test_what_is_hardly_served_changes_nothing(optimal):
    assert served(optimal, 1e3) == optimal


def test_the_sum_of_training_and_serving_falls_for_the_same_loss(optimal):
    plans = [served(optimal, tokens) for tokens in (1e11, 1e12, 1e13)]
    for tokens, plan in zip((1e11, 1e12, 1e13), plans, strict=True):
        assert plan.loss.value <= optimal.loss.value * 1.0005
        assert plan.lifetime_flops(tokens) <= optimal.lifetime_flops(tokens)
    sizes = [plan.shape.num_parameters for plan in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < optimal.shape.num_parameters
    assert plans[-1].tokens > optimal.tokens
    assert plans[-1].lifetime_flops(1e13) < 0.9 * optimal.lifetime_flops(1e13)
