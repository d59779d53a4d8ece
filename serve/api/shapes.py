"""What the server answers, as types: the shapes that its OpenAPI document shows and that conformance tests hold it to.

Promise: every answer of serve/api/answers.py, serve/api/embedding.py and serve/api/tokenization.py has these fields. Price: none at run
time. Sources: OpenAI's API reference; vLLM's for /tokenize, `token_ids` and `max_model_len`.
"""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

__all__ = [
    "ChatCompletion", "ChatCompletionChunk", "Completion", "CompletionChunk", "Detokenized", "Embeddings", "ErrorBody", "Health",
    "Model", "Models", "Tokenized",
]  # fmt: skip


class _Error(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """Whatever goes wrong."""

    error: _Error


class Health(TypedDict):
    """Ready."""

    status: Literal["ok"]


class Model(TypedDict):
    """A model that is served here, or an adapter of it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    parent: NotRequired[str]


class Models(TypedDict):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


class _PromptDetails(TypedDict):
    cached_tokens: int


class _CompletionDetails(TypedDict):
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class _Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PromptDetails
    completion_tokens_details: _CompletionDetails


class _TextLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class _TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class _ChatLogprob(_TopLogprob):
    top_logprobs: list[_TopLogprob]


class _ChatLogprobs(TypedDict):
    content: list[_ChatLogprob]
    refusal: None


class _TextChoice(TypedDict):
    index: int
    text: str
    logprobs: _TextLogprobs | None
    finish_reason: Literal["stop", "length"]
    token_ids: NotRequired[list[int]]


class Completion(TypedDict):
    """POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[_TextChoice]
    usage: _Usage


class _TextChunkChoice(TypedDict):
    index: int
    text: str
    logprobs: _TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    token_ids: NotRequired[list[int]]


class CompletionChunk(TypedDict):
    """An event of a streamed completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[_TextChunkChoice]
    usage: NotRequired[_Usage | None]


class _Function(TypedDict):
    name: str
    arguments: str


class _ToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: _Function


class _Message(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[_ToolCall]]


class _ChatChoice(TypedDict):
    index: int
    message: _Message
    logprobs: _ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_ids: NotRequired[list[int]]


class ChatCompletion(TypedDict):
    """POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[_ChatChoice]
    usage: _Usage


class _FunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class _ToolCallDelta(TypedDict):
    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: _FunctionDelta


class _Delta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    tool_calls: NotRequired[list[_ToolCallDelta]]


class _ChatChunkChoice(TypedDict):
    index: int
    delta: _Delta
    logprobs: _ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    token_ids: NotRequired[list[int]]


class ChatCompletionChunk(TypedDict):
    """An event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[_ChatChunkChoice]
    usage: NotRequired[_Usage | None]


class _Embedding(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class _EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class Embeddings(TypedDict):
    """POST /v1/embeddings."""

    object: Literal["list"]
    data: list[_Embedding]
    model: str
    usage: _EmbeddingUsage


class Tokenized(TypedDict):
    """POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str | None] | None


class Detokenized(TypedDict):
    """POST /detokenize."""

    prompt: str
