"""The loss to expect of a shape on a text: by a law of one's own runs where there is one, else by the priors.

Promise: N is counted as the law that speaks counts it; repeated text counts for less by either. Price: none; a law of one's own takes
some tenth of a millisecond a question.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from train.plan.law_file import OwnLaw
from train.plan.laws import Interval, predict_loss
from train.plan.shapes import ModelShape

__all__ = ["PRIORS", "Data", "Outlook", "tokens_for"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What a tokens folder offers."""

    num_sequences: int
    sequence_length: int
    vocab_size: int
    bytes_per_token: float
    zstd_bits_per_byte: float
    """How far zstd (level 19) shrinks the text, a megabyte of it at a time."""
    padding_share: float = 0.0

    @property
    def num_tokens(self) -> float:
        """Tokens that are not padding."""
        return self.num_sequences * self.sequence_length * (1 - self.padding_share)


@dataclass(frozen=True, slots=True)
class Outlook:
    """Whose word on the loss is taken."""

    law: OwnLaw | None = None
    """None: the priors of train/plan/laws.py, for the dense architecture; of experts they count those that a token visits."""

    def parameters(self, shape: ModelShape) -> int:
        """N of the shape, as the law counts it."""
        counts = self.law is None or self.law.counts_embeddings
        return shape.num_active_parameters - (0 if counts else shape.num_embedding_parameters)

    def loss(self, shape: ModelShape, tokens: float, data: Data) -> Interval:
        """Nats per token of the data's tokenizer, after training on `tokens` of its tokens."""
        if self.law is None:
            return predict_loss(
                parameters=shape.num_active_parameters, tokens=tokens, unique=data.num_tokens, vocab_size=data.vocab_size,
                bytes_per_token=data.bytes_per_token, zstd_bits_per_byte=data.zstd_bits_per_byte,
            )  # fmt: skip
        found, most = self.law.loss(self.parameters(shape), tokens, data.num_tokens), math.log(data.vocab_size)
        return Interval(*(min(bound, most) for bound in (found.value, found.low, found.high)))

    def beyond(self, shape: ModelShape, flops: float) -> float:
        """How many times larger than the largest run the law was fitted to; 1 at most where it is not, or where priors speak."""
        if self.law is None:
            return 1.0
        return max(1.0, self.parameters(shape) / self.law.largest[0], flops / self.law.largest[1])


PRIORS = Outlook()


def tokens_for(loss: float, shape: ModelShape, data: Data, outlook: Outlook, *, most: float) -> float | None:
    """The fewest tokens after which `shape` has reached `loss`; None if `most` are not enough. By bisection, to a thousandth."""
    low, high = 1.0, most
    if outlook.loss(shape, most, data).value > loss:
        return None
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        if outlook.loss(shape, middle, data).value > loss:
            low = middle
        else:
            high = middle
    return high
