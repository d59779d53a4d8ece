"""Requests in service: whatever is done with them, they are as many as a list of them would say, and as old."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.served import Served

steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.floats(0.01, 100), st.booleans()),
        st.tuples(st.just("shrink"), st.floats(0.0, 1.0)),
        st.tuples(st.just("forget"), st.integers(0, 40)),
        st.tuples(st.just("take"), st.floats(0.0, 1.0)),
        st.tuples(st.just("join"), st.floats(0.01, 100)),
    ),
    max_size=30,
)


@given(steps)
def test_it_is_the_list_of_its_parts(made):
    served, plain, horizon_s = Served(), Counter(), 0.0
    for now_s, (what, *given_) in enumerate(made):
        if what == "add":
            served.add(float(now_s), *given_)
            plain[float(now_s), given_[1]] += given_[0]
        elif what == "join":
            other = Served()
            other.add(float(now_s), given_[0], True)
            served.join(other)
            plain[float(now_s), True] += given_[0]
        elif what == "forget":
            served.forget(float(given_[0]))
            horizon_s = max(horizon_s, float(given_[0]))
        else:
            share = given_[0] if what == "shrink" else 1 - given_[0]
            before = served.amount
            if what == "shrink":
                served.shrink(share)
            else:
                assert served.take(given_[0]).amount == pytest.approx(before * given_[0])
            plain = Counter({key: amount * share for key, amount in plain.items()})
        assert served.amount == pytest.approx(sum(plain.values()), abs=1e-9)
    found = Counter()
    for came_s, amount, again in served.parts():
        found[max(came_s, horizon_s), again] += amount
    expected = Counter()
    for (came_s, again), amount in plain.items():
        expected[max(came_s, horizon_s), again] += amount
    assert {key: found[key] for key in expected} == pytest.approx(dict(expected), abs=1e-9)


def test_shrinking_for_a_year_loses_no_digits():
    served = Served()
    for step in range(20_000):
        served.shrink(0.4)
        served.add(float(step), 6.0, False)
        served.forget(step - 10.0)
    assert served.amount == pytest.approx(10.0)
    assert sum(amount for _, amount, _ in served.parts()) == pytest.approx(10.0)
    assert len(served.parts()) <= 12
