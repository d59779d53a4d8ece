"""What all of OpenAI's requests share, as this server reads them: JSON bytes -> a checked body, or one OpenAI error.

Promise: a body is either understood completely or refused with one OpenAI error that names the field. What clients send
routinely and what cannot change the answer (`metadata`, `store`, …) is accepted and ignored; anything that would change the
answer and is not supported is refused, never dropped.
Price: one pydantic validation. Source: OpenAI's API reference; `top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `ignore_eos`,
`stop_token_ids`, `structured_outputs` and `return_token_ids` follow vLLM.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from serve.structured import ResponseFormat, StructuredOutputs

__all__ = [
    "MAX_CHOICES",
    "Addressed",
    "ApiError",
    "Body",
    "Generation",
    "StreamOptions",
    "Listed",
    "TokenId",
    "Unsupported",
    "check_model",
    "read_body",
]

MAX_CHOICES = 128
"""Choices of one HTTP request: prompts times n."""
MAX_CLIENT = 64
"""Characters of `user` or `safety_identifier` that tell clients apart: as many as OpenAI allows."""


class ApiError(Exception):
    """What a client did wrong (or what failed behind the gateway), as HTTP status and OpenAI error body."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers: dict[str, str] = {}

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


Unsupported = Annotated[
    Any,
    AfterValidator(_supported),
    WithJsonSchema({"enum": [None, 0, False, [], {}, "", "none", "auto"], "description": "Not supported: only what changes nothing."}),
]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
MOST_ERRORS = 100
"""A body with more is refused without a word on each."""
TokenId = Annotated[int, Field(ge=0)]
T = TypeVar("T")
Listed = Annotated[list[T], Field(fail_fast=True)]
"""A list that may be long: its first bad item is reason enough, and a report on each of a million would hold the gateway up."""


class Body(BaseModel):
    """What every body keeps to: no unknown field, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Addressed(Body):
    """A body that names the model it is for; without a name it is for the one served here."""

    model: str | None = None


class StreamOptions(Body):
    """What a stream carries besides the text."""

    include_usage: bool = False
    include_obfuscation: Any = None  # padding against traffic analysis: a hint, ignored


class Generation(Addressed):
    """What completions and chats have in common."""

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
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None

    @model_validator(mode="after")
    def _check(self) -> Generation:
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


B = TypeVar("B", bound=Addressed)
"""The kind of a body."""


def read_body(raw: bytes, kind: type[B], *, models: Collection[str]) -> B:
    """The checked request in `raw`; ApiError 400 for a bad body, 404 for a model that is not in `models`."""
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise _refusal(error) from None
    if body.model is not None:
        check_model(body.model, models)
    return body


def check_model(name: str, models: Collection[str]) -> None:
    """ApiError 404 for a model that is not served."""
    if name not in models:
        known = ", ".join(models)
        raise ApiError(404, f"model {name!r} does not exist here; this server has: {known}", param="model", code="model_not_found")


_TAGS = ("str", "int", "float", "bool", "constrained-str", "constrained-int")  # what pydantic adds to the path for the branches of a union
_ROLES = ("system", "developer", "user", "assistant", "tool")


def _discriminator(error: Any) -> tuple[str, ...]:
    """The field that tells the branches of a union apart, where it is that field that is wrong."""
    return (error["ctx"]["discriminator"].strip("'"),) if error["type"].startswith("union_tag") else ()


def _refusal(error: ValidationError) -> ApiError:
    # Each branch of a union has complained: the one that complains of more than the type, or got furthest, is the one that was meant.
    if error.error_count() > MOST_ERRORS:  # to list them all would hold the gateway up
        return ApiError(400, f"the body has {error.error_count():,} errors; see /openapi.json for what it may hold")
    first = max(error.errors(), key=lambda e: (not e["type"].endswith("_type"), len(e["loc"]) + len(_discriminator(e))))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    param, before = "", None
    for part in (*first["loc"], *_discriminator(first)):
        if isinstance(part, int):
            param += f"[{part}]"
        elif part not in _TAGS and "[" not in part and not part.startswith("_") and not (isinstance(before, int) and part in _ROLES):
            param += f".{part}" if param else part
        before = part
    message = first["msg"].removeprefix("Value error, ").removeprefix(f"{param}: ")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param}: unknown field", param=param, code="unknown_parameter")
    if not param:  # a rule over several fields: the message itself opens with the field
        param = message.split(":")[0] if ":" in message else ""
        return ApiError(400, message, param=param or None)
    return ApiError(400, f"{param}: {message}", param=param, code="missing_required_parameter" if first["type"] == "missing" else None)
