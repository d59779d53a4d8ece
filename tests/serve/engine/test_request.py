"""The records: what is out of range is refused by name, what is given is frozen, and the counts add up."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.request import MAX_BIAS, MAX_STOPS, PENALTIES, Completion, Request, Run, Sampling


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("max_tokens", 1, None),
        ("min_tokens", 0, 64),
        ("temperature", 0.0, 100.0),
        ("top_p", math.ulp(0.0), 1.0),
        ("min_p", 0.0, 1.0),
        ("top_k", 0, None),
        ("repetition_penalty", *PENALTIES),
        ("presence_penalty", -100.0, 100.0),
        ("frequency_penalty", -100.0, 100.0),
        ("logprobs", 0, 100),
        ("n", 1, None),
    ],
)
def test_a_range_ends_where_it_says(name: str, least: float, most: float | None) -> None:
    below = math.nextafter(least, -math.inf) if isinstance(least, float) else least - 1
    above = () if most is None else (math.nextafter(most, math.inf) if isinstance(most, float) else most + 1,)
    for good in (least, *(() if most is None else (most,))):
        assert getattr(Sampling(**{name: good}), name) == good
    for bad in (below, *above, *((math.nan,) if isinstance(least, float) else ())):
        with pytest.raises(ValueError, match=rf"^{name}: ") as error:
            Sampling(**{name: bad})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("stop", [("",), ("end", ""), ("x",) * (MAX_STOPS + 1)])
def test_stop_strings_are_few_and_not_empty(stop: tuple[str, ...]) -> None:
    assert Sampling(stop=("x",) * MAX_STOPS).stop == ("x",) * MAX_STOPS
    with pytest.raises(ValueError, match=r"^stop: "):
        Sampling(stop=stop)


def test_one_stop_string_is_not_taken_for_its_letters() -> None:
    assert Sampling(stop="END").stop == ("END",)  # type: ignore[arg-type]


def test_biases_are_pairs_however_they_are_written() -> None:
    wanted = ((5, -1.0), (7, 2.5))
    for written in ({5: -1, 7: 2.5}, {"5": -1, "7": 2.5}, [[5, -1], [7, 2.5]], wanted):
        assert Sampling(logit_bias=written).logit_bias == wanted  # type: ignore[arg-type]
    assert Sampling(logit_bias={3: -MAX_BIAS}).logit_bias == ((3, -MAX_BIAS),)  # type: ignore[arg-type]
    for bad in ({-1: 0.0}, {3: math.inf}, {3: math.nan}, {3: 1.1 * MAX_BIAS}, {3: None}):
        with pytest.raises(ValueError, match=r"^logit_bias: "):
            Sampling(logit_bias=bad)  # type: ignore[arg-type]


def test_a_schema_may_be_a_mapping_and_keeps_its_order() -> None:
    schema = {"type": "object", "properties": {"z": {}, "a": {}}}
    written = Sampling(json_schema=schema).json_schema  # type: ignore[arg-type]
    assert isinstance(written, str)
    assert list(json.loads(written)["properties"]) == ["z", "a"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"regex": "a", "grammar": "b"}, "grammar"),
        ({"json_schema": "{}", "regex": "a"}, "regex"),
        ({"regex": "a" * 100_001}, "regex"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"repetition_penalty": math.inf}, "repetition_penalty"),
    ],
)
def test_what_cannot_go_together_is_refused(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: ") as error:
        Sampling(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *((name, bad) for name in ("max_tokens", "top_k", "min_tokens", "n", "seed", "logprobs", "best_of") for bad in (2.5, "3", (4,))),
        *((name, None) for name in ("max_tokens", "top_k", "min_tokens", "n", "temperature", "top_p", "min_p", "presence_penalty")),
        *((name, "x") for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")),
        *(("stop", bad) for bad in ((1,), b"x", (None,))),
        *(("stop_token_ids", bad) for bad in ((-1,), (1.5,), "7")),
        *((name, bad) for name in ("json_schema", "regex", "grammar") for bad in (5, False, b"a")),
    ],
)
def test_what_would_fail_in_the_middle_of_a_step_is_refused_at_once(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: ") as error:
        Sampling(**{name: bad})
    assert "\n" not in str(error.value)


def test_numbers_of_other_kinds_become_plain_ones() -> None:
    given_: Any = {"seed": np.int64(5), "max_tokens": np.int32(3), "logprobs": True, "temperature": np.float32(0.5), "top_p": 1}
    given_ |= {"stop_token_ids": np.array([7]), "logit_bias": {np.int64(4): np.float32(1)}}
    sampling = Sampling(**given_)
    request = Request(id="a", prompt=np.array([1, 2]), emitted=np.array([3]), choice=np.int64(1), priority=np.int64(2), sampling=sampling)  # type: ignore[arg-type]
    assert sampling == Sampling(seed=5, max_tokens=3, logprobs=1, temperature=0.5, stop_token_ids=(7,), logit_bias=((4, 1.0),))
    assert json.loads(json.dumps(asdict(request)))["prompt"] == [1, 2]


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *((name, bad) for name in ("prompt", "emitted") for bad in ("ab", (1.5,), (None,), 5, None)),
        *((name, bad) for name in ("choice", "priority") for bad in (None, "1", 0.5)),
        *((name, bad) for name in ("id", "tenant", "adapter", "client") for bad in (None, 5, b"x")),
    ],
)
def test_a_request_of_other_kinds_of_values_is_refused(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: "):
        Request(**{"id": "a", "prompt": (1,), name: bad})


def test_choices_begin_with_the_completion_itself() -> None:
    one, two = (Completion(text=t, tokens=(1,), finish_reason="stop") for t in "ab")
    assert replace(one, others=(two,)).choices == (replace(one, others=(two,)), two)


def test_lists_are_frozen_so_that_nobody_changes_a_request_on_its_way() -> None:
    prompt, emitted, stop, ids = [1, 2], [3], ["x"], [7]
    given_: Any = {"prompt": prompt, "emitted": emitted, "sampling": Sampling(stop=stop, stop_token_ids=ids)}  # type: ignore[arg-type]
    request = Request(id="a", **given_)
    before = hash(request)
    for each in (prompt, emitted, stop, ids):
        each.clear()
    assert (request.prompt, request.emitted, request.sampling.stop, request.sampling.stop_token_ids) == ((1, 2), (3,), ("x",), (7,))
    assert hash(request) == before
    with pytest.raises(FrozenInstanceError):
        request.choice = 1  # type: ignore[misc]


@pytest.mark.parametrize(("change", "complaint"), [({"prompt": ()}, "^prompt: request 'a' "), ({"choice": -1}, "^choice: -1 ")])
def test_a_request_that_says_nothing_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(Request(id="a", prompt=(1,)), **change)


@given(st.integers(0, 50), st.lists(st.integers(0, 9), max_size=20))
def test_usage_adds_up(num_prompt_tokens: int, tokens: list[int]) -> None:
    done = Completion(text="", tokens=tuple(tokens), finish_reason="stop", num_prompt_tokens=num_prompt_tokens)
    assert done.usage["total_tokens"] == done.usage["prompt_tokens"] + done.usage["completion_tokens"]
    assert (done.usage["prompt_tokens"], done.usage["completion_tokens"]) == (num_prompt_tokens, len(tokens))


def test_the_last_token_of_a_run_was_not_drafted() -> None:
    assert (Run([5]).num_accepted, Run([5, 6, 7]).num_accepted) == (0, 2)
