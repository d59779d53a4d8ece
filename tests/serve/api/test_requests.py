"""Checked bodies become engine requests."""

from typing import Any

import pytest

from serve.api.requests import blamed, engine_requests, token_prompts
from serve.protocol import ApiError
from tests.serve.bodies import chat, completion

TOOLS = [{"type": "function", "function": {"name": "f"}}]


def test_prompts_become_tokens() -> None:
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
    with pytest.raises(ApiError, match="prompt: 129 prompts are more than 128"):
        engine_requests(completion(), [(1,)] * 129, request_id="r", seed=1, max_length=100)
    with pytest.raises(ApiError, match="more than 128"):
        engine_requests(completion(n=100), [(1,), (2,)], request_id="c", seed=0, max_length=64)


def test_requests_carry_their_adapter_and_who_asks() -> None:
    def asked(**fields: Any) -> Any:
        (request,) = engine_requests(completion(**fields), [(1,)], request_id="c", seed=0, max_length=64, adapter="polite")
        return request

    assert (asked().adapter, asked().client) == ("polite", "")
    assert asked(user="ada").client == "ada"
    assert asked(user="ada", safety_identifier="bob").client == "bob"
    assert asked(user="x" * 100).client == "x" * 64
    assert asked(user={"name": "ada"}).client == ""


@pytest.mark.parametrize(
    ("body", "said", "param", "message"),
    [
        (completion(), "logit_bias: token 9 is outside", "logit_bias", "logit_bias: token 9 is outside"),
        (completion(structured_outputs={"regex": "a"}), "regex: no", "structured_outputs", "structured_outputs: regex: no"),
        (chat(response_format={"type": "json_object"}), "json_schema: no", "response_format", "response_format: json_schema: no"),
        (chat(tools=TOOLS), "structural_tag: no", "tools", "tools: no"),
        (chat(tools=TOOLS), "json_schema: no", "tools", "tools: json_schema: no"),
        (chat(), "the request cannot be run", None, "the request cannot be run"),
    ],
)
def test_what_the_engine_refuses_is_named_as_the_client_wrote_it(body: Any, said: str, param: str | None, message: str) -> None:
    found = blamed(ApiError(400, said), body)
    assert (found.status, found.param, found.message) == (400, param, message)


def test_other_errors_stay_as_they_are() -> None:
    for error in (ApiError(503, "logit_bias: x"), ApiError(400, "stop: x", param="messages")):
        assert blamed(error, chat()) is error
