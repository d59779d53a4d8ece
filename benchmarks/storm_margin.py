"""Why a stream's tokens are not those of the undisturbed run: rounding, or a broken promise?

In float32 a logit depends, in its last bits, on the company in which it was computed (sums in another order), so where a draw was close two
runs of one request may part. That accounts for a difference only if the draw was as close as that. At the first position that differs both
runs had the same text before them; so from float64's logits there

    error(token)  the least error of the logits that makes the request's own draw give this token: for greedy decoding half of the gap to
                  the likeliest one, for a seeded draw what moves the border of the inverse CDF past its uniform number
    noise         the largest error that the number type's own logits have over this very text, beside float64's

and the difference is explained if both tokens' errors are within the noise. Log probabilities may differ by four times the noise (two
runs, each off by it in the logit and in the sum). Promise: what is not explained is a broken promise. Price: two passes over the text.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.drill_streams import Heard, Question
from serve.api.completion import CompletionRequest
from serve.api.requests import engine_requests
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.grammar import Grammars
from serve.engine.pick import pick
from serve.engine.request import Request, Sampling
from serve.engine.rules import rules
from serve.engine.sample import uniform

__all__ = ["Margins", "least_error"]

Row = NDArray[np.float64]
MOST = 1.0
"""An error of the logits beyond which nobody would speak of rounding."""
_HALVINGS = 60


def least_error(row: Row, sampling: Sampling, number: float, token: int) -> float:
    """The least error of a row of logits [vocab] with which `number` in (0, 1) draws the token; infinity if it is more than MOST.

    Exact for greedy decoding, and for seeded draws without top-p, top-k and min-p: the token's border of the cumulative distribution moves
    farthest if all logits on one side of it are off by the same, and all on the other side by the opposite. Else an upper bound.

    >>> least_error(np.array([1.0, 0.75, 0.0]), Sampling(temperature=0), 0.5, 1)
    0.125
    """
    if sampling.temperature == 0:
        return float(row.max() - row[token]) / 2
    index = np.arange(len(row))
    ways = [
        (np.where(index > token, -1.0, 1.0), lambda drawn: drawn <= token),  # its upper border goes up past the number
        (np.where(index < token, -1.0, 1.0), lambda drawn: drawn >= token),  # its lower border goes down
        (np.where(index == token, 1.0, -1.0), lambda drawn: drawn == token),  # it comes in among what may be drawn at all
    ]

    def drawn(error: float, way: Row) -> int:
        near = row + error * way
        return pick(near, float(near.max()), sampling, number)

    found = []
    for way, reaches in ways:
        low, high = 0.0, MOST
        if reaches(drawn(0.0, way)):
            high = 0.0
        for _ in range(_HALVINGS if high else 0):
            middle = (low + high) / 2
            low, high = (low, middle) if reaches(drawn(middle, way)) else (middle, high)
        if drawn(high, way) == token:
            found.append(high)
    return min(found, default=float("inf"))


class Margins:
    """Explains differences between streams of one model; the engines are loaded when the first one comes."""

    def __init__(self, model: str, config: EngineConfig) -> None:
        self._model, self._config = Path(model), config

    @cached_property
    def _exact(self) -> Engine:
        return Engine.load(self._model, EngineConfig(dtype="float64", num_threads=1, max_sequences=1))

    @cached_property
    def _rounded(self) -> Engine:
        return Engine.load(self._model, EngineConfig(dtype=self._config.dtype, num_threads=1, max_sequences=1))

    def explain(self, question: Question, choice: int, want: Heard, got: Heard) -> dict[str, Any]:
        """Figures, and whether they account for the difference."""
        pairs = list(zip(want.tokens, got.tokens, strict=False))
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if at is not None:
            request = self._request(question, choice)
            noise, row = self._noise(request, want.tokens[:at])
            errors = [self._error(request, want.tokens[:at], row.copy(), token) for token in pairs[at]]
            return {"position": at, "tokens": list(pairs[at]), "error": max(errors), "noise": noise, "explained": max(errors) <= noise}
        if want.tokens != got.tokens or want.text != got.text or want.finish_reason != got.finish_reason:
            return {"explained": False}  # a token lost or repeated, or a text that is not its tokens'
        if len(want.logprobs) != len(got.logprobs):
            return {"explained": False}
        apart = max(abs(a - b) for a, b in zip(want.logprobs, got.logprobs, strict=True))
        noise, _ = self._noise(self._request(question, choice), want.tokens)
        return {"logprobs_apart": apart, "noise": noise, "explained": apart <= 4 * noise}

    def _request(self, question: Question, choice: int) -> Request:
        """As the gateway made it."""
        body = CompletionRequest.model_validate_json(json.dumps(question.body))
        prompt = tuple(self._exact.tokenizer.encode(question.body["prompt"]))
        return engine_requests(body, [prompt], request_id="margin", seed=0, max_length=self._exact.max_length)[choice]

    def _noise(self, request: Request, emitted: list[int]) -> tuple[float, Row]:
        """The number type's largest error over a request's text so far, and float64's logits behind its last token."""
        text = [*request.prompt, *emitted]
        exact = self._exact.logits(text)
        if self._config.dtype == "float64":
            return 0.0, exact[-1].numpy()
        return float((self._rounded.logits(text).double() - exact).abs().max()), exact[-1].numpy()

    def _error(self, request: Request, emitted: list[int], row: Row, token: int) -> float:
        sampling = request.sampling
        shape = self._exact.shape
        ends = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else frozenset(shape.eos_token_ids))
        held = rules(sampling, request.prompt, ends, shape.vocab_size, self._grammars.guide(sampling, ends))
        if held is not None:
            for known in emitted:
                held.append(known)
            held.apply(row[None], ())
        assert sampling.seed is not None, "the storm's questions have seeds"
        number = uniform(sampling.seed, request.choice, len(request.prompt) + len(emitted))
        return least_error(row, sampling, number, token)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._exact.tokenizer, self._exact.shape.vocab_size)
