"""Request bodies: what is understood, what is refused and how, and the engine requests that come out."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.protocol import ApiError, ChatRequest, CompletionRequest, engine_requests, read_body, token_prompts

MODELS = ["tern"]


def completion(**fields: Any) -> CompletionRequest:
    return read_body(json.dumps({"model": "tern", "prompt": "a", **fields}).encode(), CompletionRequest, models=MODELS)


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "tern", "messages": [{"role": "user", "content": "hi"}], **fields}
    return read_body(json.dumps(body).encode(), ChatRequest, models=MODELS)


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
        ({"structured_outputs": {"regex": "a" * 100_001}}, "regex"),
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


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]}, "messages[0].content[0].type"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
    ],
)
def test_a_bad_chat_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


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


def test_every_shape_of_prompt() -> None:
    assert completion(prompt="ab").prompts == ["ab"]
    assert completion(prompt=["ab", "c"]).prompts == ["ab", "c"]
    assert completion(prompt=[1, 2]).prompts == [[1, 2]]
    assert completion(prompt=[[1], [2, 3]]).prompts == [[1], [2, 3]]
    assert token_prompts(["ab", [7]], lambda text: [len(text)], 10) == [(2,), (7,)]
    with pytest.raises(ApiError, match="outside the vocabulary"):
        token_prompts([[10]], None, 10)
    with pytest.raises(ApiError, match="at least one token"):
        token_prompts([""], lambda text: [], 10)


def test_choices_become_requests_in_openais_order() -> None:
    body = completion(n=2, stop="x", temperature=0.5, max_tokens=4, logprobs=0, seed=9)
    requests = engine_requests(body, [(1, 2), (3,)], request_id="c", seed=5, max_length=16)
    assert [(r.id, r.prompt, r.choice) for r in requests] == [("c-0", (1, 2), 0), ("c-1", (1, 2), 1), ("c-2", (3,), 0), ("c-3", (3,), 1)]
    sampling = requests[0].sampling
    assert (sampling.seed, sampling.stop, sampling.temperature, sampling.max_tokens, sampling.logprobs) == (9, ("x",), 0.5, 4, 0)


def test_a_request_without_a_seed_is_given_one_and_openais_defaults() -> None:
    (request,) = engine_requests(chat(), [(1, 2)], request_id="c", seed=5, max_length=16)
    assert (request.sampling.seed, request.sampling.temperature, request.sampling.max_tokens) == (5, 1.0, 14)
    (request,) = engine_requests(
        chat(max_completion_tokens=3, logprobs=True, top_logprobs=2), [(1,)], request_id="c", seed=5, max_length=16
    )
    assert (request.sampling.max_tokens, request.sampling.logprobs) == (3, 2)


def test_options_reach_the_engine() -> None:
    fields = {"min_p": 0.1, "min_tokens": 2, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": -0.5}
    (request,) = engine_requests(completion(**fields, logit_bias={"7": -3}), [(1,)], request_id="c", seed=5, max_length=64)
    assert {name: getattr(request.sampling, name) for name in fields} == fields
    assert request.sampling.logit_bias == ((7, -3.0),)


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type":"object"}'),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "null"}}}},
            "json_schema",
            '{"type": "null"}',
        ),
        ({"structured_outputs": {"json": {"type": "null"}}}, "json_schema", '{"type": "null"}'),
        ({"structured_outputs": {"json": "true"}}, "json_schema", "true"),
        ({"structured_outputs": {"json_object": True}}, "json_schema", '{"type":"object"}'),
        ({"structured_outputs": {"regex": "a+"}, "response_format": {"type": "text"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ['y"es', "no"]}}, "grammar", 'root ::= "y\\"es" | "no"'),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "grammar", 'root ::= "a"'),
    ],
)
def test_an_answer_may_be_held_to_a_grammar(fields: dict[str, Any], name: str, value: str) -> None:
    for body in (completion(**fields), chat(**fields)):
        (request,) = engine_requests(body, [(1,)], request_id="c", seed=5, max_length=64)
        found = {each: getattr(request.sampling, each) for each in ("json_schema", "regex", "grammar")}
        assert found == {**dict.fromkeys(found), name: value}


def test_best_of_computes_more_choices_than_it_returns() -> None:
    requests = engine_requests(completion(n=2, best_of=3, prompt=["a", "b"]), [(1,), (2,)], request_id="c", seed=5, max_length=64)
    assert [(r.prompt, r.choice, r.sampling.logprobs) for r in requests] == [((p,), c, 0) for p in (1, 2) for c in range(3)]
    with pytest.raises(ApiError, match="best_of: 2 prompts times best_of=100 is more than 128"):
        engine_requests(completion(best_of=100), [(1,), (2,)], request_id="c", seed=0, max_length=64)


@pytest.mark.parametrize(("fields", "length"), [({"max_tokens": 15}, 2), ({}, 16)])
def test_what_does_not_fit_the_context_is_refused(fields: dict[str, Any], length: int) -> None:
    with pytest.raises(ApiError, match="context holds 16 tokens") as caught:
        engine_requests(completion(**fields), [(1,) * length], request_id="c", seed=0, max_length=16)
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


def test_too_many_choices_are_refused() -> None:
    with pytest.raises(ApiError, match="more than 128"):
        engine_requests(completion(n=100), [(1,), (2,)], request_id="c", seed=0, max_length=64)


def test_a_conversation_as_the_template_reads_it() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = chat(messages=[{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts, "name": "Ada"}])
    assert body.turns == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "ab"}]


def test_requests_carry_their_adapter_and_who_asks() -> None:
    def asked(**fields: Any) -> Any:
        (request,) = engine_requests(completion(**fields), [(1,)], request_id="c", seed=0, max_length=64, adapter="polite")
        return request

    assert (asked().adapter, asked().client) == ("polite", "")
    assert asked(user="ada").client == "ada"
    assert asked(user="ada", safety_identifier="bob").client == "bob"
    assert asked(user="x" * 100).client == "x" * 64
    assert asked(user={"name": "ada"}).client == ""
