"""Rotary position embedding: what a config.json says about it, and the angles.

Promise: the cosines and sines of transformers, to the bit (its arithmetic is float32, and at position 8,000 another order of rounding
would already move the logits). Price: a table is made once, as far as positions have gone, doubling as they go on.
Papers: RoFormer (arXiv 2104.09864); linear scaling (2306.15595); NTK, dynamic and YaRN (2309.00071); LongRoPE (2402.13753); Llama 3.1.

Two of the variants depend on a length, and a cached key cannot be turned again, so the length is the engine's, not the text's:
*dynamic* begins to stretch beyond `max_position_embeddings`, which no text here exceeds, and so is the plain one; *longrope* has
a set of factors for texts up to `original_length` and one for longer ones, chosen by the engine's `max_length` for all texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["KINDS", "Rope", "Rotation"]

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """How one kind of layer turns its queries and keys."""

    kind: str
    theta: float
    dim: int
    """Of a head's dimensions, how many are turned (the first ones; half of them pair with the other half)."""
    scale: float = 1.0
    """What cosines and sines are multiplied with (YaRN's and LongRoPE's attention factor)."""
    factor: float = 1.0
    original_length: int = 0
    """The length the model was trained with before it was stretched."""
    ramp: tuple[float, float] = (0.0, 0.0)
    """llama3: the low and high frequency factors. yarn: the first and last dimension of its ramp."""
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    @classmethod
    def of(cls, given: dict[str, Any], head_dim: int, max_length: int) -> Rope:
        """From `rope_parameters` (or the older `rope_scaling`). ValueError with the reason if it cannot be run."""
        kind = given.get("rope_type") or given.get("type") or "default"
        kind = "longrope" if kind == "su" else kind  # its name in the first Phi-3 folders
        if kind not in KINDS:
            raise ValueError(f"scales its rotary embedding by {kind!r} (known: {', '.join(KINDS)})")
        rope = {
            "kind": kind,
            "theta": float(given["rope_theta"]),
            "dim": int(head_dim * given.get("partial_rotary_factor", 1.0)),
            "factor": float(given.get("factor") or 1.0),
            "original_length": int(given.get("original_max_position_embeddings") or max_length) if kind in _EXTRAS else 0,
        }
        try:
            return cls(**rope | (_EXTRAS[kind](rope, given, max_length) if kind in _EXTRAS else {}))
        except KeyError as missing:
            raise ValueError(f"scales its rotary embedding by {kind!r} without saying {missing}") from None
        except ArithmeticError as error:
            raise ValueError(f"scales its rotary embedding by {kind!r} with numbers that do not go together ({error})") from None

    def frequencies(self, max_length: int) -> Tensor:
        """Radians per position, float32 [dim / 2], for an engine whose texts reach at most `max_length` tokens."""
        powers = self.theta ** (torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim)
        if self.kind == "linear":
            return 1.0 / powers / self.factor
        if self.kind == "llama3":
            return self._llama3(1.0 / powers)
        if self.kind == "yarn":
            return self._yarn(powers)
        if self.kind == "longrope":
            factors = self.long_factors if max_length > self.original_length else self.short_factors
            return 1.0 / (torch.tensor(factors, dtype=torch.float32) * powers)
        return 1.0 / powers

    def _llama3(self, plain: Tensor) -> Tensor:
        """Slow ones (a wave longer than the old context allows) divided by the factor, fast ones kept, a ramp between."""
        (low, high), wave = self.ramp, 2 * math.pi / plain
        share = (self.original_length / wave - low) / (high - low)
        between = (1 - share) * plain / self.factor + share * plain
        kept = torch.where(wave > self.original_length / low, plain / self.factor, plain)
        return torch.where((wave >= self.original_length / high) & (wave <= self.original_length / low), between, kept)

    def _yarn(self, powers: Tensor) -> Tensor:
        """As llama3's, with the ramp over dimensions instead of wave lengths."""
        low, high = self.ramp
        share = 1 - ((torch.arange(self.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
        return 1.0 / (self.factor * powers) * (1 - share) + 1.0 / powers * share


def _llama3_extras(rope: dict[str, Any], given: dict[str, Any], max_length: int) -> dict[str, Any]:
    return {"ramp": (float(given["low_freq_factor"]), float(given["high_freq_factor"]))}


def _yarn_extras(rope: dict[str, Any], given: dict[str, Any], max_length: int) -> dict[str, Any]:
    original, dim = rope["original_length"], rope["dim"]
    factor = float(given.get("factor") or max_length / original)
    mscale, mscale_all = given.get("mscale"), given.get("mscale_all_dim")
    scale = given.get("attention_factor")
    if scale is None:
        scale = _mscale(factor, mscale) / _mscale(factor, mscale_all) if mscale and mscale_all else _mscale(factor, 1.0)

    def dimension(turns: float) -> float:  # that turns so often within the original length
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope["theta"]))

    low, high = dimension(given.get("beta_fast") or 32), dimension(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return {"factor": factor, "scale": float(scale), "ramp": (float(low), high + 0.001 if low == high else float(high))}


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope_extras(rope: dict[str, Any], given: dict[str, Any], max_length: int) -> dict[str, Any]:
    original = rope["original_length"]
    factor = float(given.get("factor") or max_length / original)
    scale = given.get("attention_factor")
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = (tuple(map(float, given[f"{length}_factor"])) for length in ("short", "long"))
    return {"factor": factor, "scale": float(scale), "short_factors": short, "long_factors": long}


_EXTRAS = {"llama3": _llama3_extras, "yarn": _yarn_extras, "longrope": _longrope_extras}


class Rotation:
    """The table of one `Rope`: cosines and sines [positions, dim / 2] in float32, made as far as it has been asked for."""

    def __init__(self, rope: Rope, max_length: int, device: torch.device) -> None:
        self.rope, self.max_length, self._device = rope, max_length, device
        self._frequencies = rope.frequencies(max_length)
        self.table = self._made(min(max_length, 1024))  # [2, positions, dim / 2]

    def upto(self, length: int) -> Tensor:
        """The table [2, at least `length`, dim / 2]; a larger one replaces it when positions have grown beyond it."""
        if length > self.table.shape[1]:
            self.table = self._made(min(self.max_length, max(length, 2 * self.table.shape[1])))
        return self.table

    def _made(self, length: int) -> Tensor:
        angles = torch.outer(torch.arange(length, dtype=torch.float32), self._frequencies)
        return torch.stack([angles.cos(), angles.sin()]).mul_(self.rope.scale).to(self._device)
