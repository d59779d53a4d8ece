"""The load: the trace's shape, the fleet's size, the same work in both models."""

import numpy as np
import pytest

from cluster.demand import BIN_S, DAY_S, Replica, demand, peak_tokens_per_s, single_requests, wave
from cluster.traces import LoadTrace

CHANCE = np.random.default_rng(0)
TRACE = LoadTrace(np.sort(CHANCE.uniform(0, 1800, 4000)), CHANCE.integers(10, 2000, 4000) * 1.0, CHANCE.integers(1, 900, 4000) * 1.0)


def test_the_rate_is_the_trace_s_times_the_scale():
    made = demand(TRACE, Replica(), seconds=3600, scale=3.0)
    assert made.end_s == 3600
    assert sum(made.requests) / 3600 == pytest.approx(3 * 4000 / 1800, rel=0.02)
    assert sum(made.tokens) == pytest.approx(3 * 2 * TRACE.output_tokens.sum(), rel=0.02)


def test_a_daily_wave_falls_by_its_swing():
    swing = wave(int(DAY_S / BIN_S), 0.5)
    assert swing.min() == pytest.approx(0.5, abs=1e-3)
    assert swing.max() == pytest.approx(1.0, abs=1e-3)
    assert np.argmax(swing) == pytest.approx(len(swing) / 2, abs=2)


def test_single_requests_are_the_same_load():
    for scale in (0.5, 2.5):
        made, every = demand(TRACE, Replica(), seconds=3600, scale=scale), single_requests(TRACE, Replica(), seconds=3600, scale=scale)
        assert len(every) == pytest.approx(sum(made.requests), rel=0.03)
        work = sum(n * s for n, s in zip(made.requests, made.service_s, strict=True))
        assert sum(service for _, service in every) == pytest.approx(work, rel=0.03)
        assert every == sorted(every, key=lambda request: request[0])


def test_the_busiest_minute_is_at_least_the_mean():
    assert peak_tokens_per_s(TRACE) >= TRACE.output_tokens.sum() / 1800


def test_a_replica_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="streams must be at least 1"):
        Replica(streams=0)
