"""Request bodies: what is understood, and what is refused with an OpenAI error."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.api.chat import ChatRequest
from serve.api.completion import CompletionRequest
from serve.protocol import ApiError, read_body
from tests.serve.bodies import MODELS, chat, completion


def test_what_clients_send_routinely_is_ignored() -> None:
    fields = {"user": "u", "store": False, "metadata": {}, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}}
    assert completion(**fields, echo=False, suffix=None).limit == 16
    neutral = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "parallel_tool_calls": True}
    assert chat(**fields, **neutral).limit is None


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"null", b'{"model": "tern", "prompt": "\xff"}', b'"text"'])
def test_what_is_not_a_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_body(raw, CompletionRequest, models=MODELS)
    assert caught.value.status == 400


@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode()))
def test_no_body_escapes_with_another_error(raw: bytes) -> None:
    for kind in (CompletionRequest, ChatRequest):
        with pytest.raises(ApiError):
            read_body(raw, kind, models=MODELS)


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(ApiError, match="this server has: tern") as caught:
        completion(model="gull")
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")


@pytest.mark.parametrize("item", ["{}", '"a", 1'])
def test_a_million_mistakes_are_refused_as_fast_as_one(item: str) -> None:
    raw = ('{"model": "tern", "prompt": [' + ", ".join([item] * 300_000) + "]}").encode()
    began = time.thread_time()
    with pytest.raises(ApiError) as refused:
        read_body(raw, CompletionRequest, models=MODELS)
    assert refused.value.status == 400
    assert time.thread_time() - began < 1.0


def test_hundreds_of_unknown_fields_are_one_line() -> None:
    raw = ('{"model": "tern", "prompt": "x", ' + ", ".join(f'"f{i}": 1' for i in range(400_000)) + "}").encode()
    with pytest.raises(ApiError, match="400,000 errors"):
        read_body(raw, CompletionRequest, models=MODELS)
