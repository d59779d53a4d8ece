"""What a gateway knows of its model."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from serve.api.embedding import EmbeddingRequest
from serve.api.tokenization import DetokenizeRequest, TokenizeRequest
from serve.config import ServeConfig
from serve.engine.config import UNLIMITED, EngineConfig
from serve.protocol import ApiError
from serve.served import Served, _limits
from tests.serve.bodies import chat, completion


@pytest.fixture(scope="module")
def served(tiny_model_dir: Path) -> Served:
    return Served(ServeConfig(model=str(tiny_model_dir), name="tern", engine=EngineConfig(max_length=64)))


@pytest.mark.parametrize(
    ("config", "max_length", "limits"),
    [
        ({"max_position_embeddings": 512, "vocab_size": 40, "hidden_size": 8}, None, (512, 40, 8)),
        ({"max_position_embeddings": 512, "vocab_size": 40}, 64, (64, 40, 0)),
        ({"n_positions": 1024, "vocab_size": 40, "n_embd": 16}, None, (1024, 40, 16)),
        ({"vocab_size": 40}, None, (UNLIMITED, 40, 0)),
        ({"vocab_size": 40}, 99, (99, 40, 0)),
        ({"text_config": {"max_position_embeddings": 8, "vocab_size": 5}, "vision_config": {}}, None, (8, 5, 0)),
    ],
)
def test_limits_are_the_models_own_by_whatever_name(
    config: dict[str, Any], max_length: int | None, limits: tuple[int, int, int], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert _limits(tmp_path, max_length) == limits


def test_the_model_and_its_adapters_are_listed(tiny_model_dir: Path, tiny_adapter_dir: Path) -> None:
    engine = EngineConfig(adapters=(f"polite={tiny_adapter_dir}",))
    served = Served(ServeConfig(model=str(tiny_model_dir), name="tern", engine=engine))
    assert [card["id"] for card in served.cards()["data"]] == ["tern", "polite"]
    assert "parent" not in served.card("tern")
    assert (served.card("polite")["parent"], served.card("polite")["max_model_len"]) == ("tern", 512)
    with pytest.raises(ApiError, match="this server has: tern, polite"):
        served.card("gull")


def test_prompts_become_tokens_and_what_cannot_fit_is_refused_before(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = served.tokenizer.encode
    assert asyncio.run(served.prompts(completion(prompt=["def", "for"]))) == [tuple(encode("def")), tuple(encode("for"))]
    monkeypatch.setattr(served.tokenizer, "encode", lambda text: pytest.fail("it was tokenised"))
    with pytest.raises(ApiError, match="too few for 100,000 characters") as caught:
        asyncio.run(served.prompts(completion(prompt="x" * 100_000)))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def test_a_conversation_is_one_prompt(served: Served) -> None:
    (prompt,), box = asyncio.run(served.conversation(chat()))
    assert (prompt, box) == (tuple(served.tokenizer.encode_chat([{"role": "user", "content": "hi"}])), None)
    with pytest.raises(ApiError, match="this model's chat template shows none"):
        asyncio.run(served.conversation(chat(tools=[{"type": "function", "function": {"name": "f"}}])))


def test_a_conversation_that_cannot_fit_is_neither_rendered_nor_tokenised(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.tokenizer, "encode", lambda *_, **__: pytest.fail("it was tokenised"))
    turn = {"role": "user", "content": ""}
    template = served.tokenizer.chat
    monkeypatch.setattr(served.tokenizer, "chat", lambda *_, **__: pytest.fail("it was rendered"))
    with pytest.raises(ApiError, match="too few for 65 messages; shorten the messages") as caught:
        asyncio.run(served.conversation(chat(messages=[turn] * 65)))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    monkeypatch.setattr(served.tokenizer, "chat", lambda turns, **more: template(turns, **more) * 99)
    with pytest.raises(ApiError, match=r"too few for [\d,]+ characters"):
        asyncio.run(served.conversation(chat(messages=[turn] * 60)))


def test_a_template_that_refuses_is_the_clients_mistake(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no such talk') }}")
    with pytest.raises(ApiError, match="no such talk") as caught:
        asyncio.run(Served(ServeConfig(model=str(folder))).conversation(chat()))
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_texts_to_embed_are_within_the_context(served: Served) -> None:
    assert asyncio.run(served.texts(EmbeddingRequest(model="tern", input=[[5] * 64]))) == [(5,) * 64]
    for fields, param in (({"input": [5] * 65}, "input"), ({"input": [400]}, "input"), ({"input": "a", "dimensions": 8}, "dimensions")):
        with pytest.raises(ApiError) as caught:
            asyncio.run(served.texts(EmbeddingRequest(model="tern", **fields)))
        assert (caught.value.status, caught.value.param) == (400, param)


def test_tokens_there_and_back(served: Served) -> None:
    tokens = asyncio.run(served.tokenized(TokenizeRequest(prompt="naïve 🐦<|pad|>")))["tokens"]
    assert asyncio.run(served.detokenized(DetokenizeRequest(tokens=tokens))) == {"prompt": "naïve 🐦<|pad|>"}
    with pytest.raises(ApiError, match="tokens: token id 400 is outside"):
        asyncio.run(served.detokenized(DetokenizeRequest(tokens=[400])))
