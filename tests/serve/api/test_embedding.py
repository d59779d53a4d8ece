"""Embedding bodies and answers."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.api.embedding import MAX_INPUTS, EmbeddingRequest, embedding_answer
from serve.protocol import ApiError, read_body

VECTORS = np.array([[0.6, -0.8], [1.0, 0.0]], np.float32)


def body_of(**fields: Any) -> EmbeddingRequest:
    return read_body(json.dumps({"model": "tern", **fields}).encode(), EmbeddingRequest, models=["tern"])


def test_every_shape_of_input() -> None:
    assert body_of(input="ab").inputs == ["ab"]
    assert body_of(input=["ab", "c"]).inputs == ["ab", "c"]
    assert body_of(input=[1, 2]).inputs == [[1, 2]]
    assert body_of(input=[[1], [2, 3]]).inputs == [[1], [2, 3]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": [-1]}, "input[0]"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "echo": True}, "echo"),
        ({}, "input"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        body_of(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_dimensions_are_the_models_own_or_refused() -> None:
    body_of(input="a").check(8)
    body_of(input="a", dimensions=8).check(8)
    with pytest.raises(ApiError, match="dimensions: this model's embeddings have 8"):
        body_of(input="a", dimensions=4).check(8)


def test_numbers_and_base64_say_the_same() -> None:
    plain = embedding_answer(body_of(input=["a", "b"]), VECTORS, [3, 4])
    coded = embedding_answer(body_of(input=["a", "b"], encoding_format="base64"), VECTORS, [3, 4])
    assert [entry["index"] for entry in plain["data"]] == [0, 1]
    assert plain["usage"] == coded["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    for number, text in zip(plain["data"], coded["data"], strict=True):
        assert np.frombuffer(base64.b64decode(text["embedding"]), "<f4").tolist() == number["embedding"]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_no_bit_is_lost_on_the_way(values: list[float]) -> None:
    answer = json.loads(json.dumps(embedding_answer(body_of(input="a"), np.array([values], np.float32), [1])))
    assert np.array(answer["data"][0]["embedding"], np.float32).tobytes() == np.array(values, np.float32).tobytes()
