"""The length predictor: within bounds from the start, learns what differs, forgets what is old, keeps little."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from serve.engine.predict import PRIOR_LENGTH, LengthPredictor
from serve.engine.request import Request, Sampling


def ask(prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 1000, **fields: str) -> Request:
    return Request(id="x", prompt=prompt, sampling=Sampling(max_tokens=max_tokens), **fields)


def test_before_anything_is_seen_the_prior_is_said_as_far_as_the_limit_lets() -> None:
    assert LengthPredictor().predict(ask()) == PRIOR_LENGTH
    assert LengthPredictor().predict(ask(max_tokens=7)) == 7


@given(
    st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 500), st.sampled_from(["", "a", "b"])), max_size=50),
    st.integers(1, 2000),
    st.integers(0, 30),
)
def test_a_prediction_is_between_what_is_there_and_the_limit(seen: list[tuple[int, int, str]], limit: int, emitted: int) -> None:
    predictor = LengthPredictor()
    for length, prompt, client in seen:
        predictor.learn(ask((1,) * prompt, client=client), length)
    request = Request(id="x", prompt=(1,) * 9, sampling=Sampling(max_tokens=limit), emitted=(1,) * min(emitted, limit))
    assert max(1, len(request.emitted)) <= predictor.predict(request) <= limit


def test_clients_prompt_lengths_and_templates_are_told_apart() -> None:
    predictor, rng = LengthPredictor(), random.Random(0)
    kinds = {
        ask(client="brief"): 20,
        ask((4,) * 900, client="mixed"): 300,
        ask((5,) * 9, client="mixed"): 40,
        ask((*range(40), 1), client="forms"): 100,
        ask((*range(1, 41), 1), client="forms"): 200,
    }
    for _ in range(300):
        request = rng.choice(list(kinds))
        predictor.learn(request, round(kinds[request] * rng.uniform(0.5, 1.5)))
    for request, mean in kinds.items():
        assert 0.7 * mean < predictor.predict(request) < 1.4 * mean


def test_a_client_seen_once_is_judged_mostly_by_the_others() -> None:
    predictor = LengthPredictor()
    for i in range(100):
        predictor.learn(ask(client=f"c{i}"), 50)
    predictor.learn(ask(client="new"), 900)
    assert 50 < predictor.predict(ask(client="new")) < 600
    assert predictor.predict(ask(client="newer", prompt=(9,))) < 100


def test_the_mean_follows_a_change() -> None:
    predictor = LengthPredictor()
    for length in [500] * 400 + [10] * 400:
        predictor.learn(ask(), length)
    assert predictor.predict(ask()) < 30


def test_memory_is_bounded_and_the_common_case_is_kept() -> None:
    predictor = LengthPredictor(capacity=50)
    for i in range(500):
        predictor.learn(ask((i, i + 1), client=f"c{i}"), 30)
    assert len(predictor) <= 50
    assert 30 < predictor.predict(ask((7000,), client="nobody")) < 45, "what all have in common outlives each one's own"
