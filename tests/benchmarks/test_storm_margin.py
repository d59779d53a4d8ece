"""What accounts for a difference between two runs: a draw as close as the number type's rounding, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.storm_margin import Margins, least_error
from pipelines.drill_streams import Heard, Question
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.pick import pick
from serve.engine.request import Sampling

BODY = {"model": "m", "prompt": "def add(", "max_tokens": 120, "stream": True, "ignore_eos": True, "return_token_ids": True}


@given(
    st.lists(st.floats(-8, 8), min_size=2, max_size=40), st.floats(0.01, 0.99), st.sampled_from([0.3, 0.8, 1.5]),
    st.sampled_from([1e-6, 1e-3, 0.1]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_what_an_error_makes_of_a_draw_needs_no_larger_error(
    logits: list[float], number: float, heat: float, size: float, seed: int
) -> None:
    row, sampling = np.array(logits), Sampling(temperature=heat)
    off = row + size * np.random.default_rng(seed).uniform(-1, 1, len(row))
    token = pick(off, float(off.max()), sampling, number)
    assert least_error(row, sampling, number, token) <= size * (1 + 1e-6) + 1e-12
    assert least_error(row, sampling, number, pick(row, float(row.max()), sampling, number)) == 0.0


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=40), st.integers(0, 2**32 - 1))
def test_the_same_for_greedy_decoding(logits: list[float], seed: int) -> None:
    row = np.array(logits)
    off = row + 0.1 * np.random.default_rng(seed).uniform(-1, 1, len(row))
    assert least_error(row, Sampling(temperature=0), 0.5, int(off.argmax())) <= 0.1


def test_a_far_token_needs_an_error_that_is_no_rounding() -> None:
    row = np.array([4.0, 0.0, -np.inf])
    assert least_error(row, Sampling(temperature=1.0), 0.5, 1) > 0.9
    assert least_error(row, Sampling(temperature=0.1), 0.5, 1) == math.inf
    assert least_error(row, Sampling(temperature=1.0), 0.5, 2) == math.inf  # the grammar forbids it
    assert least_error(row, Sampling(temperature=1.0, top_p=0.5), 0.9, 1) == math.inf  # not among what top-p leaves
    near = np.array([1.0, 1.0 - 1e-6])
    assert least_error(near, Sampling(temperature=1.0, top_p=0.5), 0.9, 1) < 1e-5


@pytest.fixture(scope="module")
def greedy(tiny_model_dir: Path) -> tuple[Heard, list[float], list[int]]:
    """A greedy stream in float64; at each position half the gap to the second token, and which that is."""
    engine = Engine.load(tiny_model_dir, EngineConfig(dtype="float64", num_threads=1))
    tokens = list(engine.generate([BODY["prompt"]], Sampling(temperature=0, max_tokens=120, ignore_eos=True))[0].tokens)
    prompt = list(engine.tokenizer.encode(BODY["prompt"]))
    best = engine.logits([*prompt, *tokens])[len(prompt) - 1 : -1].topk(2, -1)
    return Heard(tokens, "t", [], "length"), ((best.values[:, 0] - best.values[:, 1]) / 2).tolist(), best.indices[:, 1].tolist()


def other(want: Heard, at: int, token: int) -> Heard:
    return Heard([*want.tokens[:at], token, *want.tokens[at + 1 :]], "t", [], "length")


def test_a_close_draw_is_explained_and_a_clear_one_is_not(tiny_model_dir: Path, greedy: tuple[Heard, list[float], list[int]]) -> None:
    want, gaps, seconds = greedy
    question = Question("greedy", {**BODY, "temperature": 0})
    coarse, fine = (Margins(str(tiny_model_dir), EngineConfig(dtype=dtype)) for dtype in ("bfloat16", "float32"))
    at = int(np.argmin(gaps))
    close = coarse.explain(question, 0, want, other(want, at, seconds[at]))
    assert close["position"] == at
    assert close["error"] == pytest.approx(gaps[at])
    assert close["explained"] == (close["error"] <= close["noise"])
    clear = int(np.argmax(gaps))
    for margins in (coarse, fine):
        found = margins.explain(question, 0, want, other(want, clear, seconds[clear]))
        assert 0 < found["noise"] < found["error"]
        assert not found["explained"]


def test_a_seeded_draw_of_a_number_type_is_explained_by_its_own_noise(tiny_model_dir: Path) -> None:
    body = {**BODY, "temperature": 0.8, "seed": 7, "n": 2}
    sampling = Sampling(temperature=0.8, seed=7, max_tokens=120, ignore_eos=True, n=2)
    exact, coarse = (
        Engine.load(tiny_model_dir, EngineConfig(dtype=dtype, num_threads=1)).generate([BODY["prompt"]], sampling)[0]
        for dtype in ("float64", "bfloat16")
    )
    margins = Margins(str(tiny_model_dir), EngineConfig(dtype="bfloat16"))
    pairs = [(exact, coarse), *zip(exact.others, coarse.others, strict=True)]
    apart = [(i, a, b) for i, (a, b) in enumerate(pairs) if a.tokens != b.tokens]
    assert apart, "bfloat16 drew all that float64 did: nothing to explain"
    for choice, a, b in apart:
        found = margins.explain(Question("seeded", body), choice, Heard(list(a.tokens), "t"), Heard(list(b.tokens), "t"))
        assert found["explained"], found


def test_lost_and_repeated_tokens_and_other_texts_are_never_explained(
    tiny_model_dir: Path, greedy: tuple[Heard, list[float], list[int]]
) -> None:
    want, _, _ = greedy
    margins, question = Margins(str(tiny_model_dir), EngineConfig(dtype="float32")), Question("greedy", {**BODY, "temperature": 0})
    for got in (
        Heard(want.tokens[:-1], "t", [], "length"),
        Heard([*want.tokens, 5], "t", [], "length"),
        Heard(want.tokens, "u", [], "length"),
        Heard(want.tokens, "t", [-1.0], "length"),
    ):
        assert margins.explain(question, 0, want, got) == {"explained": False}


def test_log_probabilities_may_be_apart_by_rounding_alone(tiny_model_dir: Path, greedy: tuple[Heard, list[float], list[int]]) -> None:
    want, _, _ = greedy
    margins, question = (
        Margins(str(tiny_model_dir), EngineConfig(dtype="float32")),
        Question("logprobs", {**BODY, "temperature": 0, "logprobs": 2}),
    )
    for apart, explained in ((1e-7, True), (0.01, False)):
        a, b = (Heard(want.tokens, "t", [value] * len(want.tokens), "length") for value in (-1.0, -1.0 + apart))
        assert margins.explain(question, 0, a, b)["explained"] == explained
