"""How likely a model finds text: documents in overlapping windows, and continuations of a prompt.

Promise: every token is judged once, with at least the overlap of a window as its context; a text's score does not depend on what it is
batched with. Price: a forward pass per window. Source: strided windows as in transformers' perplexity guide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["Piece", "Score", "judge", "nats_of", "windows"]

Piece = tuple[int, list[int], int]
"""(what it belongs to, its tokens, the first position that counts)."""


@dataclass(frozen=True, slots=True)
class Score:
    """Likelihood of some text under a model."""

    nats: float = 0.0
    """Σ −ln p."""
    num_tokens: int = 0
    num_bytes: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(self.nats + other.nats, self.num_tokens + other.num_tokens, self.num_bytes + other.num_bytes)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens


def judge(
    model: PreTrainedModel, tokenizer: Any, texts: Sequence[str], *, max_length: int, overlap: float, batch_tokens: int
) -> list[Score]:
    """The score of each text. A tokenizer without a first token has the model guess it uniformly over its vocabulary."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    nats = [0.0 if first is not None or not ids else math.log(len(tokenizer)) for ids in encoded]
    pieces = []
    for index, ids in enumerate(encoded):
        tokens = ids if first is None else [first, *ids]
        pieces += [(index, tokens[start:end], scored_from - start) for start, scored_from, end in windows(len(tokens), max_length, overlap)]
    for index, value in nats_of(model, pieces, batch_tokens):
        nats[index] += value
    return [Score(n, len(ids), len(text.encode("utf-8"))) for n, ids, text in zip(nats, encoded, texts, strict=True)]


def nats_of(model: PreTrainedModel, pieces: Sequence[Piece], batch_tokens: int) -> Iterator[tuple[int, float]]:
    """(what it belongs to, Σ −ln p of the tokens that count) of each piece, in any order, at most `batch_tokens` tokens at once."""
    import torch

    from train.loss import token_nll

    for batch in _batches(pieces, batch_tokens):
        input_ids, labels = _padded([(tokens, counted_from) for _, tokens, counted_from in batch])
        positions = torch.arange(input_ids.shape[1], device=model.device).expand_as(input_ids)
        found = token_nll(model, input_ids.to(model.device), positions, labels.to(model.device)).sum(dim=1, dtype=torch.float64)
        yield from zip((index for index, _, _ in batch), found.tolist(), strict=True)


def windows(num_tokens: int, max_length: int, overlap: float) -> Iterator[tuple[int, int, int]]:
    """(start, first position judged, end) of each window over a document whose token 0 is given; every later token is judged once.

    >>> list(windows(10, max_length=4, overlap=0.5))
    [(0, 1, 5), (2, 5, 7), (4, 7, 9), (5, 9, 10)]
    """
    judged = 1
    fresh = max(1, max_length - round(overlap * max_length))
    while judged < num_tokens:
        end = min(num_tokens, max_length + 1 if judged == 1 else judged + fresh)
        yield max(0, end - max_length - 1), judged, end
        judged = end


def _batches(pieces: Sequence[Piece], batch_tokens: int) -> Iterator[list[Piece]]:
    """Windows of about equal length together, at most `batch_tokens` tokens with padding."""
    batch: list[Piece] = []
    for piece in sorted(pieces, key=lambda p: (-len(p[1]), p[0])):
        if batch and (len(batch) + 1) * len(batch[0][1]) > batch_tokens:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _padded(rows: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    """(input ids, labels) of windows, padded on the right, where causal attention does not see it."""
    import torch

    from train.corpus import IGNORED

    width = max(len(tokens) for tokens, _ in rows) - 1
    inputs = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for row, (tokens, scored_from) in enumerate(rows):
        inputs[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        labels[row, scored_from - 1 : len(tokens) - 1] = torch.tensor(tokens[scored_from:])
    return inputs, labels
