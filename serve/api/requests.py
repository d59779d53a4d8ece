"""A checked body -> one engine request per choice.

Promise: OpenAI's defaults and order of choices; every request leaves here with a seed, so that whoever continues it elsewhere draws
the same tokens; what does not fit into the context is refused here. Price: none. Source: OpenAI's API reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serve.api.chat import ChatRequest
from serve.api.completion import CompletionRequest
from serve.engine.request import Request, Sampling
from serve.protocol import MAX_CHOICES, ApiError

__all__ = ["blamed", "check_tokens", "engine_requests", "token_prompts"]


_HELD = ("json_schema", "regex", "grammar", "structural_tag")
"""What of `Sampling` holds an answer."""


def token_prompts(
    prompts: Sequence[str | list[int]], encode: Callable[[str], list[int]], vocab_size: int, param: str = "prompt"
) -> list[tuple[int, ...]]:
    """Token ids per prompt: text through `encode`, ids as they are (ApiError 400 where one is outside the vocabulary)."""
    found = [tuple(encode(p)) if isinstance(p, str) else tuple(p) for p in prompts]
    for ids in found:
        if not ids:
            raise ApiError(400, f"{param}: must hold at least one token", param=param)
        check_tokens(ids, vocab_size, param)
    return found


def check_tokens(tokens: Sequence[int], vocab_size: int, param: str) -> None:
    """ApiError 400 where a token id is outside the vocabulary."""
    if tokens and max(tokens) >= vocab_size:
        raise ApiError(400, f"{param}: token id {max(tokens)} is outside the vocabulary of {vocab_size}", param=param)


def engine_requests(
    body: CompletionRequest | ChatRequest,
    prompts: Sequence[tuple[int, ...]],
    *,
    request_id: str,
    seed: int,
    max_length: int,
    adapter: str = "",
    held: Mapping[str, Any] | None = None,
) -> list[Request]:
    """One engine request per choice, in OpenAI's order (every choice of the first prompt first).

    `seed` is used where the client gave none; `held` says what the answer is held to, if not the body alone. Raises
    ApiError 400 (`context_length_exceeded`) where prompt and answer do not fit into `max_length` tokens.
    """
    choices = body.num_computed
    if choices * len(prompts) > MAX_CHOICES:
        if choices == 1:
            raise ApiError(400, f"prompt: {len(prompts)} prompts are more than {MAX_CHOICES} choices", param="prompt")
        name = "n" if choices == (body.n or 1) else "best_of"
        raise ApiError(400, f"{name}: {len(prompts)} prompts times {name}={choices} is more than {MAX_CHOICES} choices", param=name)
    return [
        Request(
            id=f"{request_id}-{p * choices + c}",
            prompt=prompt,
            sampling=_sampling(body, prompt, seed, max_length, body.grammar if held is None else held),
            choice=c,
            adapter=adapter,
            client=body.client,
        )
        for p, prompt in enumerate(prompts)
        for c in range(choices)
    ]


def _sampling(
    body: CompletionRequest | ChatRequest, prompt: tuple[int, ...], seed: int, max_length: int, held: Mapping[str, Any]
) -> Sampling:
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
        **held,
    }
    try:
        return Sampling(**{name: value for name, value in fields.items() if value is not None})
    except ValueError as error:
        raise blamed(ApiError(400, str(error)), body) from None


def blamed(error: ApiError, body: CompletionRequest | ChatRequest) -> ApiError:
    """A refusal of the engine's in the client's terms: where its message opens with a field of `Sampling`, `param` is what became that."""
    field = error.message.partition(":")[0]
    if error.status != 400 or error.param is not None:
        return error
    if field in type(body).model_fields:
        return ApiError(400, error.message, param=field, code=error.code)
    if field not in _HELD:
        return error
    if body.structured_outputs is not None:
        param = "structured_outputs"
    else:
        param = "tools" if isinstance(body, ChatRequest) and body.calls_allowed else "response_format"
    return ApiError(400, f"{param}: {error.message.removeprefix('structural_tag: ')}", param=param, code=error.code)
