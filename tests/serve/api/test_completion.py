"""A completion's body: which fields are refused, and by what name; every shape of prompt."""

from typing import Any

import pytest

from serve.api.requests import engine_requests
from serve.protocol import ApiError
from tests.serve.bodies import completion


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": [""]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"bogus": 1}}, "stream_options.bogus"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_p": 1.5}, "min_p"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"logit_bias": {"five": 3}}, "logit_bias.five"),
        ({"logit_bias": {"5": 300}}, "logit_bias.5"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a" * 100_001}}, "structured_outputs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": 5}, "prompt"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"echo": True}, "echo"),
        ({"tempreature": 1}, "tempreature"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        engine_requests(completion(**fields), [(1,)], request_id="c", seed=0, max_length=64)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith(param)
    assert caught.value.body()["error"]["type"] == "invalid_request_error"


def test_every_shape_of_prompt() -> None:
    assert completion(prompt="ab").prompts == ["ab"]
    assert completion(prompt=["ab", "c"]).prompts == ["ab", "c"]
    assert completion(prompt=[1, 2]).prompts == [[1, 2]]
    assert completion(prompt=[[1], [2, 3]]).prompts == [[1], [2, 3]]
