"""Scaling laws: the loss that N parameters reach on D tokens, for text seen once or several times, with an honest interval.

Promise: L(N, D) = E + A/N^α + B/D^β, in nats per token of the tokenizer that the law was fitted with, and a conversion to another
tokenizer by bytes: what a model knows of a byte does not depend on how bytes are grouped, so L' = L·b'/b with D' bytes-for-bytes.
N counts all parameters, embeddings included. Repeated data loses value as Muennighoff et al. (2023) measured.
Price: the constants are priors. Domain, optimizer and batch move the loss by tens of percent; the interval says so. Your own runs will
say it better than any prior.

Sources of the constants: CHINCHILLA is Epoch's refit (Besiroglu et al. 2024) of Hoffmann et al. (2022), web text. SMALL_RUNS has its
exponents, and coefficients fitted to eight runs of this repository's dense recipe on two CPU cores: 0.6 to 6.5 M parameters on 0.25 to
16 M tokens of Python sources, byte-level BPE of 4,096 or 8,192 tokens, final losses 5.6 to 2.2, reproduced within 6 % (one outlier,
trained with another optimizer, within 16 %; tests/train/plan/test_laws.py lists them). How much harder other text is follows from how
far a general compressor shrinks it: hardly (power 1/4) for a model at the start, in full for one that has learned its text. With the
power rising between 10^13 and 10^16 FLOPs, web text comes within a fifth of what Kaplan et al.'s law of compute says from 10^14 to 10^19.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHINCHILLA", "MUENNIGHOFF", "SMALL_RUNS", "Interval", "LossLaw", "Priors", "Repetition", "predict_loss", "priors", "worth"]

Amount = TypeVar("Amount", float, NDArray[np.float64])


@dataclass(frozen=True, slots=True)
class Interval:
    """A prediction: its value, and the range that should hold the truth nine times out of ten."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        assert self.low <= self.value <= self.high, self

    @classmethod
    def around(cls, value: float, below: float, above: float | None = None) -> Interval:
        """`value`, less the share `below` and more the share `above` of it (by default the same factor as below)."""
        return cls(value, value * (1 - below), value / (1 - below) if above is None else value * (1 + above))

    def table(self) -> dict[str, float]:
        """As plan.toml holds it."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, kw_only=True, slots=True)
class Repetition:
    """How fast repeated data and surplus parameters lose their value: R* of Muennighoff et al. (2023), in repetitions."""

    data: float
    parameters: float


MUENNIGHOFF_REPETITION = Repetition(data=15.387756, parameters=5.309743)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossLaw:
    """L(N, D) = E + A/N^α + B/D^β in nats per token.

    >>> round(CHINCHILLA.loss(70e9, 1.4e12), 2)
    1.97
    """

    E: float
    """Loss that no model and no data remove."""
    A: float
    alpha: float
    B: float
    beta: float
    bytes_per_token: float
    """Of the tokenizer and text that it was fitted with."""
    zstd_bits_per_byte: float
    """To how many bits zstd (level 19) shrinks a byte of such text, taken 1 MB at a time: how hard it is to predict."""
    hardness_power: float = 1.0
    """The loss on other text grows with its zstd bits to this power in runs of little compute; in large ones in full."""

    def loss(self, parameters: float, tokens: float) -> float:
        """Loss of a model trained on `tokens` tokens, each seen once."""
        return float(self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta)

    def optimal_parameters(self, tokens: float) -> float:
        """The parameters that make best use of `tokens` unique tokens under a compute budget: αA/N^α = βB/D^β.

        Infinite where the loss does not fall with both, as in a law fitted to a table that says nothing of one.
        """
        if self.alpha <= 0 or self.beta <= 0:
            return math.inf
        ratio = math.log(self.alpha) + math.log(self.A) - math.log(self.beta) - math.log(self.B)
        return math.exp(min(max((ratio + self.beta * math.log(tokens)) / self.alpha, 0.0), 700.0))

    def repeated_loss(self, parameters: float, tokens: float, unique: float, repetition: Repetition = MUENNIGHOFF_REPETITION) -> float:
        """Loss when `tokens` tokens are passes over `unique` ones: repetition r counts as r*·(1 - e^(-r/r*)) fresh ones.

        >>> round(MUENNIGHOFF.repeated_loss(6.34e9, 242e9, 25e9), 9)
        2.225644089
        """
        own = min(tokens, unique)
        useful = min(parameters, self.optimal_parameters(own))
        return self.loss(worth(parameters, useful, repetition.parameters), worth(tokens, own, repetition.data))


def worth(total: Amount, fresh: Amount, decay: float) -> Amount:
    """What `total` is worth when only `fresh` of it is new: fresh·(1 + r*·(1 - e^(-r/r*))) with r = total/fresh - 1 repetitions.

    Of one run, or of arrays of them.

    >>> round(float(worth(8.0, 2.0, 15.0)), 3)
    7.438
    """
    return fresh * (1 - decay * np.expm1(-np.maximum(total / fresh - 1, 0) / decay))  # type: ignore[no-any-return]


MUENNIGHOFF = LossLaw(
    E=math.exp(0.6254804), A=math.exp(6.255414), alpha=0.3526596, B=math.exp(7.3049974), beta=0.3526596,
    bytes_per_token=4.0, zstd_bits_per_byte=2.68,
)  # fmt: skip
CHINCHILLA = LossLaw(  # MassiveText has about 4 bytes a token; its compression is taken to be C4's
    E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658, bytes_per_token=4.0, zstd_bits_per_byte=2.68
)
SMALL_RUNS = LossLaw(E=0.6, A=223.0, alpha=0.3478, B=538.0, beta=0.3658, bytes_per_token=3.45, zstd_bits_per_byte=1.49, hardness_power=0.25)

_SMALL_BELOW_FLOPS, _LARGE_ABOVE_FLOPS = 1e16, 1e19  # SMALL_RUNS was fitted below the first, CHINCHILLA above the second
_STARTING_FLOPS, _LEARNED_FLOPS = 1e13, 1e16  # between them the hardness of text comes to count in full
_CAP = 1.5  # how sharply the uniform guess caps SMALL_RUNS, which was fitted with it
_SPREAD, _SPREAD_BETWEEN = 0.15, 0.15  # of nine in ten: in a fitted regime, and how much more halfway between the two


@dataclass(frozen=True, slots=True)
class Priors:
    """What both priors say of a run, and how far it lies from the small ones towards the large."""

    small: float
    large: float
    weight: float
    """Of the large: 0 below 10^16 FLOPs, 1 above 10^19."""
    guess: float
    """ln V, the loss of guessing uniformly."""

    @property
    def capped(self) -> float:
        """The small one; a power law grows without bound towards no data, so that the guess caps it: L^-1.5 = L_law^-1.5 + (ln V)^-1.5."""
        return float((self.small**-_CAP + self.guess**-_CAP) ** (-1 / _CAP))

    @property
    def value(self) -> float:
        """Their weighted geometric mean; the guess at most."""
        return float(min(self.capped ** (1 - self.weight) * self.large**self.weight, self.guess))


def priors(
    *, parameters: float, tokens: float, unique: float, vocab_size: int, bytes_per_token: float, zstd_bits_per_byte: float
) -> Priors:
    """Both priors, in nats per token of your tokenizer."""
    weight = _way(6 * parameters * tokens, _SMALL_BELOW_FLOPS, _LARGE_ABOVE_FLOPS)
    small, large = (_converted(law, parameters, tokens, unique, bytes_per_token, zstd_bits_per_byte) for law in (SMALL_RUNS, CHINCHILLA))
    return Priors(small, large, weight, math.log(vocab_size))


def _way(flops: float, low: float, high: float) -> float:
    """How far `flops` lie from `low` towards `high`, 0 to 1, by their logarithms."""
    return min(1.0, max(0.0, math.log(flops / low) / math.log(high / low)))


def predict_loss(
    *, parameters: float, tokens: float, unique: float, vocab_size: int, bytes_per_token: float, zstd_bits_per_byte: float
) -> Interval:
    """Loss in nats per token, of your tokenizer, after training on `tokens` tokens of which `unique` are different.

    Below 10^16 FLOPs (6·N·D) the small-run prior speaks, above 10^19 Chinchilla's, between them their weighted geometric mean.
    """
    found = priors(
        parameters=parameters, tokens=tokens, unique=unique, vocab_size=vocab_size, bytes_per_token=bytes_per_token,
        zstd_bits_per_byte=zstd_bits_per_byte,
    )  # fmt: skip
    made = Interval.around(found.value, _SPREAD + _SPREAD_BETWEEN * 4 * found.weight * (1 - found.weight))
    return Interval(made.value, made.low, min(made.high, 1.02 * found.guess))


def _converted(law: LossLaw, parameters: float, tokens: float, unique: float, bytes_per_token: float, zstd_bits_per_byte: float) -> float:
    """A law's loss in nats per token of another tokenizer (by bytes) and of other text (by how far it can be compressed)."""
    ratio = bytes_per_token / law.bytes_per_token
    harder = min(2.0, max(0.5, zstd_bits_per_byte / law.zstd_bits_per_byte))
    learned = _way(6 * parameters * tokens, _STARTING_FLOPS, _LEARNED_FLOPS)
    power = law.hardness_power + (1 - law.hardness_power) * learned
    return float(law.repeated_loss(parameters, tokens * ratio, unique * ratio) * ratio * harder**power)
