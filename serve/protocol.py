"""OpenAI's requests, as this server reads them: JSON bytes -> a checked request -> one engine request per choice.

Promise: a body is either understood completely or refused with one OpenAI error that names the field. What clients send
routinely and what cannot change the answer (`metadata`, `store`, …) is accepted and ignored; anything that would change the
answer and is not supported is refused, never dropped. Every engine request leaves here with a seed, so that whoever
continues it elsewhere draws the same tokens.
Price: one pydantic validation. Source: OpenAI's API reference; `top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `ignore_eos`,
`stop_token_ids`, `structured_outputs` and `return_token_ids` follow vLLM.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve.engine.request import Request, Sampling
from serve.structured import ResponseFormat, StructuredOutputs

__all__ = ["ApiError", "ChatRequest", "CompletionRequest", "StreamOptions", "check_model", "engine_requests", "read_body", "token_prompts"]

MAX_CHOICES = 128
"""Choices of one HTTP request: prompts times n."""
MAX_CLIENT = 64
"""Characters of `user` or `safety_identifier` that tell clients apart: as many as OpenAI allows."""


class ApiError(Exception):
    """What a client did wrong (or what failed behind the gateway), as HTTP status and OpenAI error body."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def type(self) -> str:
        """OpenAI's class of error."""
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def _supported(value: Any) -> Any:
    if value not in (None, 0, False, [], {}, "", "none", "auto", {"type": "text"}):
        raise ValueError("is not supported by this server; leave it out")
    return value


Unsupported = Annotated[Any, AfterValidator(_supported)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Body):
    """What a stream carries besides the text."""

    include_usage: bool = False
    include_obfuscation: Any = None  # padding against traffic analysis: a hint, ignored


class _Common(_Body):
    model: str
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Probability | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool = False
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @model_validator(mode="after")
    def _check(self) -> _Common:
        if len(self.stop_strings) > 16 or "" in self.stop_strings:
            raise ValueError("stop: at most 16 stop strings, none of them empty")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only allowed when stream is true")
        if self.structured_outputs is not None and self.response_format is not None and self.response_format.options:
            raise ValueError("structured_outputs: given together with response_format; use only one of them")
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however they were written."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def grammar(self) -> dict[str, str]:
        """What the answer is held to, as fields of `Sampling`."""
        asked = self.structured_outputs or self.response_format
        return {} if asked is None else asked.options

    @property
    def client(self) -> str:
        """Who asks, as far as the body says: whose turn it is under the policy fair, and nothing that changes the answer."""
        name = self.safety_identifier or self.user
        return name[:MAX_CLIENT] if isinstance(name, str) else ""

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Common):
    """The body of POST /v1/completions."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Unsupported = None
    suffix: Unsupported = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    @model_validator(mode="after")
    def _check_completion(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError("best_of: must be at least n")
        if self.stream and self.num_computed > (self.n or 1):
            raise ValueError("best_of: the best are known at the end only, so more than n cannot be streamed")
        if not self.prompt:
            raise ValueError("prompt: must not be empty")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives per token, None for no log probabilities."""
        return self.logprobs

    @property
    def limit(self) -> int | None:
        """Tokens to generate; OpenAI's default for completions is 16."""
        return self.max_tokens or 16

    @property
    def num_computed(self) -> int:
        """Choices to compute for each prompt, of which the best n are returned."""
        return self.best_of or self.n or 1

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt: text, or token ids as they are."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [entry for entry in self.prompt if not isinstance(entry, int)]


class _TextPart(_Body):
    type: Literal["text"]
    text: str


class _Message(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart]
    name: Any = None


class ChatRequest(_Common):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Unsupported = None
    tool_choice: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    modalities: Any = None
    parallel_tool_calls: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None

    @model_validator(mode="after")
    def _check_chat(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only allowed when logprobs is true")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives per token, None for no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> int | None:
        """Tokens to generate; None: as many as the context holds."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_computed(self) -> int:
        """Choices to compute."""
        return self.n or 1

    @property
    def turns(self) -> list[dict[str, str]]:
        """The messages as a chat template reads them; a developer's message is a system message."""
        role = {"developer": "system"}
        return [{"role": role.get(m.role, m.role), "content": _flat(m.content)} for m in self.messages]


B = TypeVar("B", bound=_Common)


def read_body(raw: bytes, kind: type[B], *, models: Collection[str]) -> B:
    """The checked request in `raw`; ApiError 400 for a bad body, 404 for a model that is not in `models`."""
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise _refusal(error) from None
    check_model(body.model, models)
    return body


def check_model(name: str, models: Collection[str]) -> None:
    """ApiError 404 for a model that is not served."""
    if name not in models:
        known = ", ".join(models)
        raise ApiError(404, f"model {name!r} does not exist here; this server has: {known}", param="model", code="model_not_found")


def token_prompts(prompts: Sequence[str | list[int]], encode: Any, vocab_size: int) -> list[tuple[int, ...]]:
    """Token ids per prompt: text through `encode`, ids as they are (ApiError 400 where one is outside the vocabulary)."""
    found = [tuple(encode(p)) if isinstance(p, str) else tuple(p) for p in prompts]
    for ids in found:
        if not ids:
            raise ApiError(400, "prompt: must hold at least one token", param="prompt")
        if max(ids) >= vocab_size:
            raise ApiError(400, f"prompt: token id {max(ids)} is outside the vocabulary of {vocab_size}", param="prompt")
    return found


def engine_requests(
    body: CompletionRequest | ChatRequest,
    prompts: Sequence[tuple[int, ...]],
    *,
    request_id: str,
    seed: int,
    max_length: int,
    adapter: str = "",
) -> list[Request]:
    """One engine request per choice, in OpenAI's order (every choice of the first prompt first).

    `seed` is used where the client gave none. Raises ApiError 400 (`context_length_exceeded`) where prompt and answer do
    not fit into `max_length` tokens.
    """
    choices = body.num_computed
    if choices * len(prompts) > MAX_CHOICES:
        name = "n" if choices == (body.n or 1) else "best_of"
        raise ApiError(400, f"{name}: {len(prompts)} prompts times {name}={choices} is more than {MAX_CHOICES} choices", param=name)
    return [
        Request(
            id=f"{request_id}-{p * choices + c}",
            prompt=prompt,
            sampling=_sampling(body, prompt, seed, max_length),
            choice=c,
            adapter=adapter,
            client=body.client,
        )
        for p, prompt in enumerate(prompts)
        for c in range(choices)
    ]


def _sampling(body: CompletionRequest | ChatRequest, prompt: tuple[int, ...], seed: int, max_length: int) -> Sampling:
    room = max_length - len(prompt)
    wanted = body.limit if body.limit is not None else max(room, 1)
    if wanted > room:
        param = "prompt" if isinstance(body, CompletionRequest) else "messages"
        message = (
            f"this model's context holds {max_length} tokens, but {len(prompt)} in the prompt and {wanted} in the answer are "
            f"{len(prompt) + wanted}; shorten the prompt or ask for fewer tokens"
        )
        raise ApiError(400, message, param=param, code="context_length_exceeded")
    compares = body.num_computed > (body.n or 1)
    fields: dict[str, Any] = {
        "max_tokens": wanted,
        "min_tokens": body.min_tokens,
        "temperature": body.temperature,
        "top_k": body.top_k,
        "top_p": None if body.top_p is None else max(body.top_p, 1e-9),  # OpenAI allows 0: the likeliest token alone
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": body.logit_bias,
        "seed": seed if body.seed is None else body.seed,
        "stop": body.stop_strings,
        "stop_token_ids": body.stop_token_ids,
        "ignore_eos": body.ignore_eos,
        "logprobs": 0 if compares and body.num_logprobs is None else body.num_logprobs,
        **body.grammar,
    }
    try:
        return Sampling(**{name: value for name, value in fields.items() if value is not None})
    except ValueError as error:
        raise ApiError(400, str(error), param=str(error).split(":")[0]) from None


def _flat(content: str | list[_TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


_TAGS = ("str", "int", "float", "bool")  # what pydantic adds to the path for the branches of a union


def _refusal(error: ValidationError) -> ApiError:
    # Each branch of a union has complained: the one that got furthest, and about more than the type, is the one that was meant.
    first = max(error.errors(), key=lambda e: (len(e["loc"]), not e["type"].endswith("_type")))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    param = ""
    for part in first["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part not in _TAGS and "[" not in part and not part.startswith("_"):
            param += f".{part}" if param else part
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param}: unknown field", param=param, code="unknown_parameter")
    if not param:  # a rule over several fields: the message itself opens with the field
        param = message.split(":")[0] if ":" in message else ""
        return ApiError(400, message, param=param or None)
    return ApiError(400, f"{param}: {message}", param=param, code="missing_required_parameter" if first["type"] == "missing" else None)
