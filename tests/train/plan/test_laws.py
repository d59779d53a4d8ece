"""The laws against published values, and what must hold of any loss prediction."""

from __future__ import annotations

import csv
import doctest
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.plan import laws
from train.plan.forms import KAPLAN
from train.plan.laws import CHINCHILLA, MUENNIGHOFF, SMALL_RUNS, Interval, predict_loss

SIZES = st.floats(1e5, 1e12)
AMOUNTS = st.floats(1e4, 1e13)


def test_doctests():
    assert doctest.testmod(laws).failed == 0


@pytest.mark.parametrize(("parameters", "tokens", "loss"), [(6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867)])
def test_the_data_constrained_law_has_its_published_values(parameters, tokens, loss):
    assert MUENNIGHOFF.repeated_loss(parameters, tokens, unique=25e9) == pytest.approx(loss, abs=1e-9)


def test_chinchillas_own_points_lie_on_its_law(data_dir):
    with (data_dir / "laws" / "chinchilla-points.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {name.lower().replace(" ", "_"): name for name in rows[0]}
    size = next(names[name] for name in names if "size" in name or "param" in name)
    flops = next(names[name] for name in names if "flop" in name)
    loss = next(names[name] for name in names if "loss" in name)
    errors = [CHINCHILLA.loss(float(r[size]), float(r[flops]) / (6 * float(r[size]))) / float(r[loss]) - 1 for r in rows]
    errors.sort(key=abs)
    assert abs(errors[len(errors) // 2]) < 0.01
    assert all(abs(error) < 0.05 for error in errors[:-10])


def test_an_optimal_model_balances_both_terms():
    tokens = 1e11
    parameters = CHINCHILLA.optimal_parameters(tokens)

    def at_equal_compute(factor: float) -> float:
        return CHINCHILLA.loss(parameters * factor, tokens / factor)

    assert at_equal_compute(1.0) < min(at_equal_compute(0.9), at_equal_compute(1.1))


@given(st.floats(-1, 2), st.floats(-1, 2), st.floats(-700, 700), st.floats(-700, 700), AMOUNTS)
def test_an_absurd_fit_has_an_optimum_all_the_same(alpha, beta, a, b, tokens):
    law = replace(CHINCHILLA, A=math.exp(a), B=math.exp(b), alpha=alpha, beta=beta)
    assert law.optimal_parameters(tokens) >= 1


@given(SIZES, AMOUNTS, st.floats(1.0, 1e3))
def test_repetition_helps_but_never_as_much_as_fresh_text(parameters, unique, passes):
    once, fresh = (
        MUENNIGHOFF.repeated_loss(parameters, unique, unique),
        MUENNIGHOFF.repeated_loss(parameters, unique * passes, unique * passes),
    )
    repeated = MUENNIGHOFF.repeated_loss(parameters, unique * passes, unique)
    assert repeated <= once + 1e-12
    assert repeated >= fresh - 1e-9


@given(SIZES, AMOUNTS)
def test_text_seen_once_follows_the_plain_law_up_to_the_useful_size(parameters, tokens):
    small = min(parameters, SMALL_RUNS.optimal_parameters(tokens))
    assert SMALL_RUNS.repeated_loss(small, tokens, unique=tokens) == pytest.approx(SMALL_RUNS.loss(small, tokens))


@given(SIZES, AMOUNTS, AMOUNTS, st.integers(256, 200_000), st.floats(1, 8))
def test_predictions_are_ordered_and_no_worse_than_a_guess(parameters, tokens, unique, vocab_size, bytes_per_token):
    text = {"vocab_size": vocab_size, "bytes_per_token": bytes_per_token, "zstd_bits_per_byte": 2.0}
    loss = predict_loss(parameters=parameters, tokens=tokens, unique=unique, **text)
    assert 0 < loss.low <= loss.value <= loss.high
    assert loss.value <= math.log(vocab_size)


PYTHON = {"vocab_size": 8192, "bytes_per_token": 3.45, "zstd_bits_per_byte": 1.49}


@given(st.floats(1e5, 1e7), st.floats(1e4, 1e7), st.floats(1.01, 10))
def test_more_fresh_text_never_hurts(parameters, tokens, factor):
    less, more = (predict_loss(parameters=parameters, tokens=amount, unique=amount, **PYTHON) for amount in (tokens, tokens * factor))
    assert more.value <= less.value * (1 + 1e-9)


def test_the_two_priors_meet_without_a_step_up():
    losses = [
        predict_loss(parameters=10**k, tokens=20 * 10**k, unique=20 * 10**k, **PYTHON).value for k in (5, 6, 7, 7.5, 8, 8.5, 9, 10, 11)
    ]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(("zstd", "bytes_per_token"), [(1.49, 3.45), (2.03, 3.8), (2.68, 4.3)])
def test_ten_times_the_compute_never_promises_more_loss(zstd, bytes_per_token):
    losses = [_least_loss(10.0**k, zstd, bytes_per_token) for k in range(12, 25)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("exponent", range(14, 20))
def test_web_text_comes_near_kaplans_law_of_compute(exponent):
    critical, power = KAPLAN["petaflop_days"]  # WebText2: some 4.3 bytes to a token
    published = (critical / (10.0**exponent / (1e15 * 86400))) ** power
    assert _least_loss(10.0**exponent, 2.68, 4.3) == pytest.approx(published, rel=0.2)


def test_where_chinchilla_speaks_alone_it_says_what_it_says():
    found = predict_loss(parameters=70e9, tokens=1.4e12, unique=1.4e12, vocab_size=32_000, bytes_per_token=4.0, zstd_bits_per_byte=2.68)
    assert found.value == pytest.approx(CHINCHILLA.loss(70e9, 1.4e12))


def _least_loss(flops, zstd, bytes_per_token):
    """Of all sizes with this compute."""
    text = {"unique": 1e30, "vocab_size": 50_000, "bytes_per_token": bytes_per_token, "zstd_bits_per_byte": zstd}
    return min(predict_loss(parameters=10 ** (k / 20), tokens=flops / 6 / 10 ** (k / 20), **text).value for k in range(80, 240))


def test_harder_text_costs_more_and_coarser_tokens_cost_more_each():
    at = {"parameters": 1e7, "tokens": 1e8, "unique": 1e8}
    base = predict_loss(**at, **PYTHON).value
    assert predict_loss(**at, **(PYTHON | {"zstd_bits_per_byte": 2.68})).value > base
    coarse = predict_loss(**at, **(PYTHON | {"bytes_per_token": 5.0})).value
    assert base < coarse < base * 5.0 / 3.45


MIXED = {"vocab_size": 4096, "bytes_per_token": 3.25, "zstd_bits_per_byte": 2.03}
OWN_RUNS = [  # parameters, tokens, training loss over the last twentieth (nats per token), text: what SMALL_RUNS was fitted to
    (1_180_512, 249_856, 5.612, PYTHON),
    (622_912, 249_856, 5.616, PYTHON),
    (622_912, 998_400, 4.796, PYTHON),
    (1_180_512, 998_400, 4.604, PYTHON),
    (2_971_680, 999_936, 4.718, PYTHON),
    (622_912, 2_996_224, 4.073, PYTHON),
    (787_296, 920_051, 4.559, MIXED),  # `sterna pretrain` itself
    (6_500_000, 16_400_000, 2.196, PYTHON),  # held-out loss; trained with Muon, which gets further
]


@pytest.mark.parametrize(("parameters", "tokens", "loss", "text"), OWN_RUNS)
def test_small_runs_of_our_own_are_inside_the_interval(parameters, tokens, loss, text):
    predicted = predict_loss(parameters=parameters, tokens=tokens, unique=max(tokens, 5e6), **text)
    assert predicted.low <= loss <= predicted.high
    assert predicted.value == pytest.approx(loss, rel=0.16 if tokens > 1e7 else 0.06)


def test_an_interval_is_ordered_or_a_bug():
    assert Interval.around(2.0, 0.1) == Interval(2.0, 1.8, 2.0 / 0.9)
    with pytest.raises(AssertionError):
        Interval(1.0, 2.0, 3.0)
