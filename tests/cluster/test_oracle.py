"""The oracle is a bound: it pays the spot price wherever spot could be had, and nothing for cold starts."""

import numpy as np
import pytest

from cluster.autoscale import AutoscaleSettings, Target
from cluster.baselines import on_demand_only
from cluster.demand import Replica, demand
from cluster.market import Pool
from cluster.oracle import oracle_cost
from cluster.replay import MarketRules, Replay
from cluster.requests import Fluid, Rules
from cluster.traces import SpotTrace, steady_load

HOUR = 3600.0


@pytest.mark.parametrize(("share", "expected"), [(1.0, 0.3), (0.5, 0.65), (0.01, 0.993)])
def test_the_same_target_at_spot_prices_where_there_is_spot(share, expected):
    wanted, rules = demand(steady_load(), Replica(), seconds=20 * HOUR, scale=50.0), MarketRules()
    run = Replay(on_demand_only, Fluid(wanted, Rules(), 32), Rules(), rules, AutoscaleSettings(), (Pool("z"),))
    run.target = Target(20)
    run.run([], wanted.end_s)
    spot = SpotTrace("z", np.asarray([0.0, share * 20 * HOUR]), np.asarray([1.0, 0.0]), 20 * HOUR)
    same, bare = oracle_cost([spot], run, wanted, Replica(), rules, lambda _: 1000.0)
    assert same == pytest.approx(expected, abs=0.02)
    assert bare == pytest.approx(0.8 * expected, abs=0.03)
