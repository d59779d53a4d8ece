"""Bodies of /tokenize and /detokenize: the same tokens as a completion or a chat would begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serve.api.tokenization import DetokenizeRequest, TokenizeRequest, tokenize_answer
from serve.engine.text import Tokenizer

HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": "a", "messages": HI},
        {"messages": []},
        {"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"prompt": "a", "continue_final_message": True},
        {"messages": HI, "chat_template_kwargs": {"self": 1}},
        {"prompt": "a", "wings": 2},
    ],
)
def test_bad_bodies_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TokenizeRequest.model_validate(fields)


def test_a_prompt_and_a_chat(tiny_model_dir: Path) -> None:
    tokenizer = Tokenizer(tiny_model_dir)
    assert TokenizeRequest(prompt="def add").tokens(tokenizer) == tokenizer.encode("def add")
    assert TokenizeRequest.model_validate({"messages": HI}).tokens(tokenizer) == tokenizer.encode_chat(HI)
    plain = TokenizeRequest.model_validate({"messages": HI, "add_generation_prompt": False}).tokens(tokenizer)
    assert plain == tokenizer.encode_chat(HI, add_generation_prompt=False)


def test_names_where_asked_for(tiny_model_dir: Path) -> None:
    tokenizer = Tokenizer(tiny_model_dir)
    tokens = tokenizer.encode("a b")
    answer = tokenize_answer(TokenizeRequest(prompt="a b", return_token_strs=True), tokens, tokenizer, 512)
    assert answer == {"count": len(tokens), "max_model_len": 512, "tokens": tokens, "token_strs": list(map(tokenizer.token_name, tokens))}
    assert "".join(answer["token_strs"]) == "aĠb"
    assert tokenize_answer(TokenizeRequest(prompt="a b"), tokens, tokenizer, 512)["token_strs"] is None


def test_negative_tokens_are_refused() -> None:
    with pytest.raises(ValidationError):
        DetokenizeRequest(tokens=[-1])
