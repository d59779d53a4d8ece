"""The gateway over HTTP, to the official OpenAI client and to bare requests; one application for all of them."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import ray.serve
from openai import OpenAI

from serve.app import APP, running
from serve.config import ServeConfig
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Request, Sampling

PROMPT = "def add(left"
FAST = EngineConfig(dtype="float64", num_threads=1)


def free_port() -> int:
    for port in range(18000, 18100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no free port")


@pytest.fixture(scope="module")
def url(ray_session: None, tiny_model_dir: Path, tiny_adapter_dir: Path) -> Iterator[str]:
    engine = replace(FAST, adapters=(f"polite={tiny_adapter_dir}",))
    with running(ServeConfig(model=str(tiny_model_dir), name="tern", port=free_port(), engine=engine)) as base:
        yield base


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="unused", max_retries=0) as made:
        yield made


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tern", "polite"]
    assert client.models.retrieve("tern").owned_by == "sterna"
    assert client.models.retrieve("polite").parent == "tern"  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError, match="this server has: tern, polite"):
        client.models.retrieve("gull")


def test_an_adapter_is_asked_for_as_a_model(client: OpenAI, tiny_model_dir: Path, tiny_adapter_dir: Path) -> None:
    engine = Engine.load(tiny_model_dir, replace(FAST, adapters=(f"polite={tiny_adapter_dir}",)))
    prompt = tuple(engine.tokenizer.encode(PROMPT))
    want = {}
    for model, adapter in (("tern", ""), ("polite", "polite")):
        engine.add(Request(id=model, prompt=prompt, sampling=Sampling(max_tokens=30, temperature=0.0), adapter=adapter))
        while engine.has_work:
            want[model] = want.get(model, "") + "".join(emission.text for emission in engine.step())
    assert want["tern"] != want["polite"]
    for model, text in want.items():
        response = client.completions.create(model=model, prompt=PROMPT, max_tokens=30, temperature=0)
        assert (response.model, response.choices[0].text) == (model, text)
    asked = {"messages": [{"role": "user", "content": "Fly!"}], "max_completion_tokens": 20, "temperature": 0}
    chats = [client.chat.completions.create(model=model, **asked).choices[0].message.content for model in want]
    assert chats[0] != chats[1]


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": 1.3, "seed": 5}, {"temperature": 1.0, "seed": 6, "stop": ["e", "\n\n"]}]
)
def test_a_completion_is_the_engines_own(client: OpenAI, tiny_model_dir: Path, options: dict[str, Any]) -> None:
    engine = Engine.load(tiny_model_dir, FAST)
    sampling = Sampling(max_tokens=40, **{**options, "stop": tuple(options.get("stop", ())), "seed": options.get("seed", 1)})
    (want,) = engine.generate([PROMPT], sampling)
    response = client.completions.create(model="tern", prompt=PROMPT, max_tokens=40, **options)
    assert (response.choices[0].text, response.choices[0].finish_reason) == (want.text, want.finish_reason)
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (want.num_prompt_tokens, len(want.tokens))


def test_a_streamed_completion_is_the_whole_one(client: OpenAI) -> None:
    options = {"model": "tern", "prompt": PROMPT, "max_tokens": 30, "seed": 3, "n": 2, "logprobs": 2}
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    details = {"completion_tokens_details"}  # how many drafts held, which is another matter the second time
    assert chunks[-1].usage.model_dump(exclude=details) == whole.usage.model_dump(exclude=details)
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert "".join(part.text for part in mine) == choice.text
        assert [t for part in mine if part.logprobs for t in part.logprobs.tokens] == choice.logprobs.tokens
        assert mine[-1].finish_reason == choice.finish_reason
    assert whole.choices[0].text != whole.choices[1].text


def test_chat_streamed_and_whole(client: OpenAI) -> None:
    options = {"model": "tern", "messages": [{"role": "user", "content": "Fly!"}], "max_completion_tokens": 20, "seed": 4}
    whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    assert whole.choices[0].message.role == "assistant"
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**options, stream=True)]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content


def test_every_shape_of_prompt(client: OpenAI) -> None:
    several = client.completions.create(model="tern", prompt=["def", "for"], max_tokens=4, temperature=0)
    assert [choice.index for choice in several.choices] == [0, 1]
    alone = client.completions.create(model="tern", prompt="for", max_tokens=4, temperature=0)
    assert several.choices[1].text == alone.choices[0].text
    assert client.completions.create(model="tern", prompt=[5, 6, 7], max_tokens=4).usage.prompt_tokens == 3


def test_mistakes_are_openai_errors(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tern", prompt=PROMPT, max_tokens=600)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gull", prompt=PROMPT)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="tern", messages=[{"role": "user", "content": "x"}], temperature=9.0)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as beyond:
        client.completions.create(model="tern", prompt=[400], max_tokens=4)
    assert "vocabulary" in beyond.value.message


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/completions", b"{bad", 400),
        ("POST", "/v1/completions", b"\xff\xfe", 400),
        ("POST", "/v1/chat/completions", b"", 400),
        ("POST", "/v1/completions", b'{"model": "tern", "prompt": "x", "stream": true, "max_tokens": 9999}', 400),
        ("GET", "/v1/completions", b"", 405),
        ("GET", "/nothing", b"", 404),
    ],
)
def test_bare_http_mistakes_have_openai_bodies(url: str, method: str, path: str, content: bytes, status: int) -> None:
    response = httpx.request(method, url.removesuffix("/v1") + path, content=content)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert "Traceback" not in response.text


def test_a_body_over_the_limit_is_refused_and_a_large_one_delays_nobody(url: str) -> None:
    too_large = httpx.post(f"{url}/completions", json={"model": "tern", "prompt": "x" * 5_000_000}, timeout=60)
    assert too_large.status_code == 413
    assert too_large.json()["error"]["code"] == "request_too_large"
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(httpx.post, f"{url}/completions", json={"model": "tern", "prompt": "x y " * 800_000}, timeout=120)
        waits = []
        while not large.done():
            began = time.monotonic()
            assert httpx.get(f"{url.removesuffix('/v1')}/health", timeout=60).status_code == 200
            waits.append(time.monotonic() - began)
        assert large.result().json()["error"]["code"] == "context_length_exceeded"
    assert max(waits, default=0.0) < 1.5, "others were answered meanwhile"


def test_health(url: str) -> None:
    assert httpx.get(url.removesuffix("/v1") + "/health").json() == {"status": "ok"}


def test_a_client_that_goes_away_frees_its_place(url: str) -> None:
    body = {"model": "tern", "prompt": PROMPT, "max_tokens": 480, "stream": True, "ignore_eos": True, "n": 8}
    with httpx.stream("POST", f"{url}/completions", json=body) as response:
        next(response.iter_lines())
    replica = ray.serve.get_deployment_handle("on_demand", APP)
    deadline = time.monotonic() + 20
    while (stats := replica.stats.remote().result())["running"] + stats["waiting"]:
        assert time.monotonic() < deadline, stats
        time.sleep(0.1)
    stays = ray.serve.get_app_handle(APP).journal.remote().result()
    assert "cancelled" in {stay["end"] for stay in stays}


def test_a_second_application_is_refused(url: str, tiny_model_dir: Path) -> None:
    with pytest.raises(ValueError, match="already runs on this cluster"), running(ServeConfig(model=str(tiny_model_dir), port=free_port())):
        pass


def test_an_answer_is_held_to_a_schema(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    response = client.chat.completions.create(
        model="tern",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=150,
        seed=1,
        frequency_penalty=0.5,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    )
    assert response.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(response.choices[0].message.content or "")["ok"], bool)


def test_a_grammar_that_cannot_be_read_is_the_clients_mistake(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="regex: cannot be used"):
        client.completions.create(model="tern", prompt=PROMPT, extra_body={"structured_outputs": {"regex": "a(("}})
    with pytest.raises(openai.BadRequestError, match="logit_bias: token 400 is outside the vocabulary of 400"):
        client.completions.create(model="tern", prompt=PROMPT, logit_bias={"400": 1})


@pytest.mark.parametrize("best_of", [4, 2])
def test_the_best_of_several_is_the_engines_own(client: OpenAI, tiny_model_dir: Path, best_of: int) -> None:
    (want,) = Engine.load(tiny_model_dir, FAST).generate([PROMPT], Sampling(max_tokens=10, seed=3, n=2, best_of=best_of))
    response = client.completions.create(model="tern", prompt=PROMPT, max_tokens=10, seed=3, n=2, best_of=best_of)
    assert [choice.text for choice in response.choices] == [each.text for each in want.choices]
