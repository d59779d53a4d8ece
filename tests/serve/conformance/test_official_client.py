"""OpenAI's own client over every endpoint and option; every raw answer has the shape that the OpenAPI document names."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import openai
import pydantic
import pytest
from openai import OpenAI
from openai.types import chat, completion_create_params, embedding_create_params

from serve.api.chat import ChatRequest, Message
from serve.api.completion import CompletionRequest
from serve.api.embedding import EmbeddingRequest
from serve.api.tools import Tool, ToolCall
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.text import Tokenizer
from serve.protocol import StreamOptions
from tests.serve.conformance.conftest import Served

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Wien", "Łódź"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "forecast", "description": "The weather.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now", "strict": True}},
]
ASK: dict[str, Any] = {"model": "tern", "messages": [{"role": "user", "content": "Fly!"}], "max_completion_tokens": 120}
NAMED = {"type": "function", "function": {"name": "forecast"}}


def streamed(served: Served, path: str, body: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The events of a stream, each of the shape it should have."""
    with httpx.stream("POST", served.url + path, json={**body, "stream": True}, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    for event in events:
        served.check(event, name)
    return events


def whole(served: Served, path: str, body: dict[str, Any], name: str) -> Any:
    response = httpx.post((served.root if path.startswith("/to") or path.startswith("/de") else served.url) + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    served.check(response.json(), name)
    return response.json()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (chat.completion_create_params.CompletionCreateParamsNonStreaming, ChatRequest),
        (completion_create_params.CompletionCreateParamsNonStreaming, CompletionRequest),
        (embedding_create_params.EmbeddingCreateParams, EmbeddingRequest),
        (chat.ChatCompletionStreamOptionsParam, StreamOptions),
        (chat.ChatCompletionToolParam, Tool),
        (chat.ChatCompletionMessageFunctionToolCallParam, ToolCall),
        *zip(
            (chat.ChatCompletionUserMessageParam, chat.ChatCompletionAssistantMessageParam, chat.ChatCompletionToolMessageParam),
            get_args(get_args(Message)[0]),
            strict=True,
        ),
    ],
    ids=lambda kind: kind.__name__,
)
def test_every_field_that_the_client_can_send_is_known(theirs: Any, ours: type[pydantic.BaseModel]) -> None:
    """To be honoured, ignored because it cannot change the answer, or refused as not supported; but not as unknown."""
    assert theirs.__required_keys__ | theirs.__optional_keys__ <= set(ours.model_fields)


def test_a_message_that_was_answered_can_be_sent_back(client: OpenAI) -> None:
    said = client.chat.completions.create(**{**ASK, "max_completion_tokens": 5}).choices[0].message
    for again in (said, {**said.model_dump(), "annotations": []}):
        assert client.chat.completions.create(**{**ASK, "messages": [*ASK["messages"], again, *ASK["messages"]]}).choices


def test_models(client: OpenAI, served: Served) -> None:
    assert [model.id for model in client.models.list()] == ["tern", "polite"]
    assert client.models.retrieve("polite").object == "model"
    served.check(httpx.get(f"{served.url}/models").json(), "Models")
    served.check(httpx.get(f"{served.url}/models/polite").json(), "Model")
    served.check(httpx.get(f"{served.root}/health").json(), "Health")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gull")


def test_completions_with_every_option(client: OpenAI, served: Served) -> None:
    options: dict[str, Any] = {
        "model": "tern", "prompt": ["def add(", "for"], "max_tokens": 12, "n": 2, "logprobs": 3, "seed": 7, "stop": ["zzz"],
        "temperature": 0.9, "top_p": 0.95, "presence_penalty": 0.1, "frequency_penalty": 0.1, "logit_bias": {"5": -1}, "user": "u",
    }  # fmt: skip
    once = client.completions.create(**options)
    assert [choice.index for choice in once.choices] == [0, 1, 2, 3]
    assert once.usage is not None
    assert once.usage.total_tokens == once.usage.prompt_tokens + once.usage.completion_tokens
    again = client.completions.create(**options)
    assert [choice.text for choice in once.choices] == [choice.text for choice in again.choices], "the same seed, the same texts"
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == once.usage.completion_tokens
    for choice in once.choices:
        parts = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.tokens or ()) > 0
    raw = {**options, "return_token_ids": True}
    whole(served, "/completions", raw, "Completion")
    streamed(served, "/completions", {**raw, "stream_options": {"include_usage": True}}, "CompletionChunk")


def test_a_stop_string_ends_the_text(client: OpenAI) -> None:
    text = client.completions.create(model="tern", prompt="def", max_tokens=40, temperature=0).choices[0].text
    stop = text[len(text) // 2 :][:3]
    cut = client.completions.create(model="tern", prompt="def", max_tokens=40, temperature=0, stop=stop).choices[0]
    assert cut.text == text[: text.index(stop)]
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"max_tokens": 10_000}, "prompt"),
        ({"prompt": [9999]}, "prompt"),
        ({"extra_body": {"tempreature": 1}}, "tempreature"),
    ],
)
def test_what_is_not_supported_is_refused_clearly(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "tern", "prompt": "def", **fields})
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")


def test_chat_with_every_option(client: OpenAI, served: Served) -> None:
    options: dict[str, Any] = {
        **ASK, "max_completion_tokens": 12, "n": 2, "logprobs": True, "top_logprobs": 2, "seed": 3, "stop": "zzz", "temperature": 0.8,
        "top_p": 0.9, "metadata": {"a": "b"}, "store": True, "user": "u", "parallel_tool_calls": True, "reasoning_effort": "low",
    }  # fmt: skip
    once = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage is not None
    assert once.usage is not None
    assert chunks[-1].usage.completion_tokens == once.usage.completion_tokens
    for choice in once.choices:
        parts = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == choice.index]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert choice.logprobs is not None
        entries = choice.logprobs.content or []
        assert b"".join(bytes(entry.bytes or b"") for entry in entries).decode(errors="replace") == choice.message.content
        assert [entry.token for part in parts if part.logprobs for entry in part.logprobs.content or ()] == [e.token for e in entries]
        assert all(len(entry.top_logprobs) == 2 and bytes(entry.bytes or b"").decode(errors="replace") == entry.token for entry in entries)
    whole(served, "/chat/completions", options, "ChatCompletion")
    streamed(served, "/chat/completions", {**options, "stream_options": {"include_usage": True}}, "ChatCompletionChunk")


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_must_be_made(client: OpenAI, served: Served, choice: Any) -> None:
    options = {**ASK, "tools": TOOLS, "tool_choice": choice, "seed": 1, "max_completion_tokens": 300, "frequency_penalty": 1.0}
    answer = client.chat.completions.create(**options).choices[0]
    assert answer.finish_reason == ("tool_calls" if choice == "required" else "stop")
    assert answer.message.content is None
    assert answer.message.tool_calls
    for call in answer.message.tool_calls:
        arguments = json.loads(call.function.arguments)  # type: ignore[union-attr]
        assert set(arguments) == ({"city", "days"} if call.function.name == "forecast" else set())  # type: ignore[union-attr]
    if choice == NAMED:
        assert [call.function.name for call in answer.message.tool_calls] == ["forecast"]  # type: ignore[union-attr]
    whole(served, "/chat/completions", options, "ChatCompletion")
    events = streamed(served, "/chat/completions", options, "ChatCompletionChunk")
    assert events[-1]["choices"][0]["finish_reason"] == answer.finish_reason
    with client.chat.completions.stream(**options) as stream:
        final = stream.get_final_completion().choices[0].message
    assert [(c.function.name, c.function.arguments) for c in final.tool_calls or ()] == [
        (c.function.name, c.function.arguments)  # type: ignore[union-attr]
        for c in answer.message.tool_calls
    ]


def test_a_conversation_with_calls_and_results(client: OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "forecast", "arguments": '{"city": "Wien", "days": 1}'}}
    messages: list[Any] = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    plain = client.chat.completions.create(**ASK, tools=TOOLS[:1], tool_choice="none", seed=1)
    longer = client.chat.completions.create(**{**ASK, "messages": messages, "max_completion_tokens": 4}, tools=TOOLS[:1])
    assert plain.choices[0].message.tool_calls is None
    assert plain.usage is not None
    assert longer.usage is not None
    assert longer.usage.prompt_tokens > plain.usage.prompt_tokens


def test_calls_or_the_format_that_is_asked_for(client: OpenAI) -> None:
    class Answer(pydantic.BaseModel):
        ok: bool

    seen = set()
    for seed in range(30):
        got = client.chat.completions.parse(**ASK, tools=[{**TOOLS[1]}], response_format=Answer, seed=seed).choices[0]
        if got.finish_reason == "length":  # white space without an end: a random model likes it
            continue
        seen.add(got.finish_reason)
        if got.finish_reason == "stop":
            assert isinstance(got.message.parsed, Answer)
        else:
            assert [call.function.name for call in got.message.tool_calls or ()] == ["now"] * len(got.message.tool_calls or ())
        if len(seen) == 2:
            break
    assert seen == {"stop", "tool_calls"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "gone"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content[0].type"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities[0]"),
    ],
)
def test_what_chats_cannot_do_is_refused_clearly(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**ASK, **fields})
    assert caught.value.param == param


def test_a_schema_that_cannot_be_held_is_the_clients_mistake(client: OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="'not' is not supported") as caught:
        client.chat.completions.create(**ASK, tools=[tool], tool_choice="required")
    assert caught.value.param == "tools"
    elsewhere = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "https://example.org/a"}}}
    with pytest.raises(openai.BadRequestError, match="no path within the schema") as caught:
        client.chat.completions.create(**ASK, response_format=elsewhere)
    assert caught.value.param == "response_format"


def test_embeddings(client: OpenAI, served: Served, tiny_model_dir: Path) -> None:
    engine = Engine.load(tiny_model_dir, EngineConfig(dtype="float64", num_threads=1))
    texts = ["def add(left, right):", "The tern flies from pole to pole"]
    want = engine.embed(texts).numpy()
    got = client.embeddings.create(model="tern", input=texts)  # the client asks for base64 by itself
    assert got.usage.prompt_tokens == sum(len(engine.tokenizer.encode(text)) for text in texts)
    np.testing.assert_allclose([entry.embedding for entry in got.data], want, atol=1e-6)
    plain = client.embeddings.create(model="tern", input=texts, encoding_format="float", dimensions=64)
    np.testing.assert_allclose([entry.embedding for entry in plain.data], want, atol=1e-6)
    ids = [engine.tokenizer.encode(text) for text in texts]
    np.testing.assert_allclose([entry.embedding for entry in client.embeddings.create(model="tern", input=ids).data], want, atol=1e-6)
    (one,) = client.embeddings.create(model="tern", input=ids[0]).data
    np.testing.assert_allclose(one.embedding, want[0], atol=1e-6)
    (polite,) = client.embeddings.create(model="polite", input=texts[0]).data
    assert np.abs(np.array(polite.embedding) - want[0]).max() > 1e-3
    raw = whole(served, "/embeddings", {"model": "tern", "input": texts, "encoding_format": "base64"}, "Embeddings")
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(raw["data"][1]["embedding"]), "<f4"), want[1], atol=1e-6)
    whole(served, "/embeddings", {"model": "tern", "input": texts}, "Embeddings")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dimensions": 32}, "dimensions"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [400]}, "input"),
        ({"input": [5] * 600}, "input"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_bad_embeddings_are_refused_clearly(served: Served, fields: dict[str, Any], param: str) -> None:
    response = httpx.post(f"{served.url}/embeddings", json={"model": "tern", "input": "x", **fields})
    assert response.status_code == 400
    served.check(response.json(), "ErrorBody")
    assert response.json()["error"]["param"] == param


def test_tokens_there_and_back(served: Served, tiny_model_dir: Path) -> None:
    tokenizer = Tokenizer(tiny_model_dir)
    text = "naïve café <|pad|> 🐦"
    found = whole(served, "/tokenize", {"model": "tern", "prompt": text, "return_token_strs": True}, "Tokenized")
    assert found["tokens"] == tokenizer.encode(text)
    assert (found["count"], found["max_model_len"], len(found["token_strs"])) == (len(found["tokens"]), 512, len(found["tokens"]))
    assert whole(served, "/detokenize", {"tokens": found["tokens"]}, "Detokenized") == {"prompt": text}
    chat = whole(served, "/tokenize", {"messages": ASK["messages"], "tools": TOOLS}, "Tokenized")
    answer = httpx.post(f"{served.url}/chat/completions", json={**ASK, "tools": TOOLS, "max_completion_tokens": 1}).json()
    assert chat["count"] == answer["usage"]["prompt_tokens"]
    for path, body in (("/tokenize", {}), ("/tokenize", {"prompt": "a", "messages": []}), ("/detokenize", {"tokens": [400]})):
        response = httpx.post(served.root + path, json=body)
        assert response.status_code == 400
        served.check(response.json(), "ErrorBody")
