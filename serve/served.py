"""The model that a gateway serves, as far as HTTP needs it: its names, its limits, its tokenizer and chat template.

Promise: texts become tokens here, in a thread of their own, and what cannot fit is refused before that. Price: a tokenizer's memory.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve.api.chat import ChatRequest
from serve.api.completion import CompletionRequest
from serve.api.convention import convention_of
from serve.api.embedding import EmbeddingRequest
from serve.api.requests import check_tokens, token_prompts
from serve.api.tokenization import DetokenizeRequest, TokenizeRequest, tokenize_answer
from serve.api.tools import Toolbox
from serve.config import ServeConfig
from serve.engine.config import LENGTHS, UNLIMITED
from serve.engine.text import Tokenizer
from serve.folder import model_folder
from serve.protocol import ApiError, check_model

__all__ = ["Served"]

Prompt = tuple[int, ...]


class Served:
    """One model and its adapters."""

    def __init__(self, config: ServeConfig) -> None:
        self.name = config.name or Path(config.model).name
        self.adapters = {self.name: "", **{adapter: adapter for adapter in config.engine.adapter_folders}}
        """By the names that clients ask for."""
        folder = model_folder(config.model)
        self.tokenizer = Tokenizer(folder)
        self.max_length, self.vocab_size, self.num_dimensions = _limits(folder, config.engine.max_length)
        self._convention = convention_of(self.tokenizer.template, self.tokenizer.is_special)
        self._created = int(time.time())

    def cards(self) -> dict[str, Any]:
        """The model, then its adapters."""
        return {"object": "list", "data": [self.card(name) for name in self.adapters]}

    def card(self, name: str) -> dict[str, Any]:
        """One of them. ApiError 404 for a name that is none of theirs."""
        check_model(name, self.adapters)
        card = {"id": name, "object": "model", "created": self._created, "owned_by": "sterna", "max_model_len": self.max_length}
        return {**card, "parent": self.name} if self.adapters[name] else card

    async def prompts(self, body: CompletionRequest) -> list[Prompt]:
        """A completion's prompts."""
        return await self._encoded(body.prompts, "prompt")

    async def conversation(self, body: ChatRequest) -> tuple[list[Prompt], Toolbox | None]:
        """A chat as the model's prompt, and the tools that its answer may call."""
        if len(body.messages) > self.max_length:
            raise self._too_long(f"{len(body.messages):,} messages", "messages")
        self._check_characters(sum(len(turn["content"]) for turn in body.turns), "messages")
        box = body.toolbox(self._convention)
        try:
            text = await asyncio.to_thread(self.tokenizer.chat, body.turns, **body.template_variables)
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from None
        self._check_characters(len(text), "messages")
        prompt = await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens=False)
        return token_prompts([prompt], self.tokenizer.encode, self.vocab_size, "messages"), box

    async def texts(self, body: EmbeddingRequest) -> list[Prompt]:
        """The texts to be embedded, each within the context."""
        body.check(self.num_dimensions)
        found = await self._encoded(body.inputs, "input")
        if (longest := max(map(len, found))) > self.max_length:
            message = f"input: a text of {longest} tokens is beyond this model's context of {self.max_length}; split it"
            raise ApiError(400, message, param="input", code="context_length_exceeded")
        return found

    async def tokenized(self, body: TokenizeRequest) -> dict[str, Any]:
        """The answer to /tokenize."""
        try:
            tokens = await asyncio.to_thread(body.tokens, self.tokenizer)
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from None
        return tokenize_answer(body, tokens, self.tokenizer, self.max_length)

    async def detokenized(self, body: DetokenizeRequest) -> dict[str, Any]:
        """The answer to /detokenize."""
        check_tokens(body.tokens, self.vocab_size, "tokens")
        return {"prompt": await asyncio.to_thread(self.tokenizer.reader(skip_special_tokens=False).decode, body.tokens)}

    async def _encoded(self, prompts: Sequence[str | list[int]], param: str) -> list[Prompt]:
        for prompt in prompts:
            if isinstance(prompt, str):
                self._check_characters(len(prompt), param)
        return await asyncio.to_thread(token_prompts, prompts, self.tokenizer.encode, self.vocab_size, param)

    def _check_characters(self, count: int, param: str) -> None:
        """Refuse what cannot fit into the context before it is tokenised, which takes a while."""
        if count > self.max_length * self.tokenizer.longest_token:
            raise self._too_long(f"{count:,} characters", param)

    def _too_long(self, what: str, param: str) -> ApiError:
        message = f"this model's context holds {self.max_length} tokens, too few for {what}; shorten the {param}"
        return ApiError(400, message, param=param, code="context_length_exceeded")


def _limits(folder: Path, max_length: int | None) -> tuple[int, int, int]:
    """Longest context, size of the vocabulary and of a hidden state, from the model's own config.json."""
    model = json.loads((folder / "config.json").read_text())
    model |= model.get("text_config") or {}  # of a model that also sees
    own = next((value for name in LENGTHS if isinstance(value := model.get(name), int)), None)
    width = next((value for name in ("hidden_size", "n_embd", "d_model") if isinstance(value := model.get(name), int)), 0)
    return max_length or own or UNLIMITED, int(model["vocab_size"]), width
