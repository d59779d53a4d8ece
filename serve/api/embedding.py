"""The body of POST /v1/embeddings, and its answer.

Promise: every shape of `input` that OpenAI takes, vectors as numbers or as base64 of little-endian float32, each of length 1. `dimensions`
is honoured where it asks for all there are; fewer would need a model trained for that (Matryoshka, arXiv 2205.13147), and is refused.
Price: text of the numbers; base64 is a third of the bytes. Source: OpenAI's API reference.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from serve.protocol import Addressed, ApiError, Listed, TokenId

__all__ = ["EmbeddingRequest", "embedding_answer"]

MAX_INPUTS = 2048
"""Texts of one request, as many as OpenAI allows."""
_Ids = Annotated[Listed[TokenId], Field(min_length=1)]


class EmbeddingRequest(Addressed):
    """The body of POST /v1/embeddings."""

    model: str
    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[Listed[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_INPUTS)]
        | _Ids
        | Annotated[Listed[_Ids], Field(min_length=1, max_length=MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: Any = None

    @model_validator(mode="after")
    def _check(self) -> EmbeddingRequest:
        if not self.inputs:
            raise ValueError("input: must not be empty")
        return self

    @property
    def inputs(self) -> list[str | list[int]]:
        """One entry per text: text, or token ids as they are."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [[token for token in self.input if isinstance(token, int)]]
        return [entry for entry in self.input if not isinstance(entry, int)]

    def check(self, num_dimensions: int) -> None:
        """ApiError 400 where another number of dimensions is asked for than the model has."""
        if self.dimensions not in (None, num_dimensions):
            message = f"dimensions: this model's embeddings have {num_dimensions}, and cannot be cut; leave it out"
            raise ApiError(400, message, param="dimensions")


def embedding_answer(body: EmbeddingRequest, vectors: NDArray[np.float32], lengths: Sequence[int]) -> dict[str, Any]:
    """The response; `vectors` [n, hidden] in the order of the inputs, whose tokens `lengths` counts.

    >>> body = EmbeddingRequest(model="tern", input="a", encoding_format="base64")
    >>> embedding_answer(body, np.array([[1.0, 0.0]], np.float32), [1])["data"][0]["embedding"]
    'AACAPwAAAAA='
    """
    data = [{"object": "embedding", "index": index, "embedding": _written(body, vector)} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}
    return {"object": "list", "data": data, "model": body.model, "usage": usage}


def _written(body: EmbeddingRequest, vector: NDArray[np.float32]) -> str | list[float]:
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]
