"""What is asked of the service over the simulated time: a recorded hour of requests, repeated and scaled to a fleet.

Promise: the shape is the trace's (arrivals, lengths, bursts), the size is what the fleet needs at its busiest minute. As rates per bin for
the fluid model, or as single requests for small runs: the same numbers of requests and the same work.
Price: one array per simulated week. Source: Azure/AzurePublicDataset, the conversation trace of 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.settings import settings
from cluster.traces import LoadTrace

__all__ = ["BIN_S", "Demand", "Replica", "demand", "single_requests"]

BIN_S = 10.0
"""Width of a bin: well below a cold start and a client's patience."""
MINUTE_BINS = int(60 / BIN_S)
DAY_S = 86400.0


@settings
class Replica:
    """What one replica does: a 70B-like model on one machine, in round figures."""

    streams: int = 32
    """Requests it serves at once; more of them wait."""
    tokens_per_s: float = 640.0
    """Output tokens a second, all streams together: 20 a stream."""
    prompt_tokens_per_s: float = 5000.0
    """Prompt tokens a second while a request is read in (or recomputed after a crash)."""

    def __post_init__(self) -> None:
        if self.streams < 1 or not self.tokens_per_s > 0 or not self.prompt_tokens_per_s > 0:
            raise ValueError("streams must be at least 1, tokens_per_s and prompt_tokens_per_s above 0")

    @property
    def stream_tokens_per_s(self) -> float:
        """Output tokens a second of one stream."""
        return self.tokens_per_s / self.streams

    def service_s(self, prompt_tokens: npt.NDArray[np.float64], output_tokens: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Seconds for which a request holds a place: reading its prompt, then writing."""
        return prompt_tokens / self.prompt_tokens_per_s + output_tokens / self.stream_tokens_per_s


@dataclass(frozen=True, slots=True)
class Demand:
    """Per bin of BIN_S: requests that arrive, their mean time in service, and the output tokens they want."""

    requests: list[float]
    service_s: list[float]
    tokens: list[float]
    prefill_s: float
    """Mean time to read a prompt: the first token's delay when nobody waits."""
    recompute_s: float
    """Mean time to compute anew what a request knows half-way."""
    scale: float
    """How many times the trace's own load this is."""

    @property
    def end_s(self) -> float:
        """Simulated seconds."""
        return len(self.requests) * BIN_S


def demand(trace: LoadTrace, replica: Replica, *, seconds: float, scale: float, diurnal: float = 0.0) -> Demand:
    """`scale` times the trace, repeated until `seconds`; `diurnal` is the swing of a daily wave (0.5: between 0.5 and 1 of it)."""
    bins = max(1, math.ceil(seconds / BIN_S))
    period = max(1, int(trace.end_s // BIN_S))  # the last, partial bin is left out
    index = np.minimum(trace.arrivals_s // BIN_S, period).astype(np.int64)
    service = replica.service_s(trace.prompt_tokens, trace.output_tokens)
    count, work, tokens = (
        np.bincount(index, weights=w, minlength=period + 1)[:period] for w in (None, service, trace.output_tokens)
    )  # fmt: skip
    mean_s = _smooth(np.asarray(work, dtype=np.float64)) / np.maximum(_smooth(np.asarray(count, dtype=np.float64)), 1e-9)
    mean_s = np.where(mean_s > 0, mean_s, service.mean())
    factor = scale * wave(bins, diurnal)
    known = trace.prompt_tokens + trace.output_tokens / 2
    return Demand(
        (np.resize(count, bins) * factor).tolist(),
        np.resize(mean_s, bins).tolist(),
        (np.resize(tokens, bins) * factor).tolist(),
        float(trace.prompt_tokens.mean() / replica.prompt_tokens_per_s),
        float(known.mean() / replica.prompt_tokens_per_s),
        scale,
    )


def wave(bins: int, diurnal: float) -> npt.NDArray[np.float64]:
    """A daily wave that peaks at 1 at noon and falls to 1 - `diurnal` at midnight."""
    at_s = (np.arange(bins) + 0.5) * BIN_S
    return np.asarray(1 - diurnal * (1 + np.cos(2 * np.pi * at_s / DAY_S)) / 2)


def peak_tokens_per_s(trace: LoadTrace) -> float:
    """Output tokens a second in the trace's busiest minute."""
    minutes = (trace.arrivals_s // 60).astype(np.int64)
    return float(np.bincount(minutes, weights=trace.output_tokens).max() / 60)


def single_requests(trace: LoadTrace, replica: Replica, *, seconds: float, scale: float, seed: int = 0) -> list[tuple[float, float]]:
    """The same load as single requests, in order: (arrival, seconds in service). Each of the trace's is repeated `scale` times (a fraction
    by lot), somewhere within its bin."""
    chance, period = np.random.default_rng(seed), max(1, int(trace.end_s // BIN_S)) * BIN_S
    inside = trace.arrivals_s < period
    begin, service = trace.arrivals_s[inside], replica.service_s(trace.prompt_tokens, trace.output_tokens)[inside]
    rounds = math.ceil(seconds / period)
    every = (begin[None, :] + period * np.arange(rounds)[:, None]).ravel()
    copies = np.floor(scale + chance.random(len(every))).astype(np.int64)
    arrivals, lengths = np.repeat(every, copies), np.repeat(np.tile(service, rounds), copies)
    arrivals = (arrivals // BIN_S + chance.random(len(arrivals))) * BIN_S if scale > 1 else arrivals
    order = np.argsort(arrivals, kind="stable")
    return [(at, long) for at, long in zip(arrivals[order].tolist(), lengths[order].tolist(), strict=True) if at < seconds]


def _smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A minute's running sum, around the corner: the trace repeats."""
    width = min(MINUTE_BINS, len(values))
    ring = np.concatenate([values, values[: width - 1]])
    return np.convolve(ring, np.ones(width), mode="valid")
