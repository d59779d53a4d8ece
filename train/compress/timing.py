"""What a product with a matrix takes under each option, measured on this machine with the engine's own kernels.

Promise: `seconds` times what the engine would run: bfloat16 activations, our kernels where this machine has them, a matrix that is not
in the caches, since a model's others have passed through them meanwhile. An option without a kernel takes what its widened form
takes. Price: a tenth of a second (256 x 256) to some seconds (8192 x 2048) per new shape and kernel, once per process.
Method: copies of the matrix, together four times the last-level cache (at most 256 MB), are multiplied one after the other; the
median over the copies of the least of three rounds.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import statistics
import time
from pathlib import Path

import torch

from serve.engine.linear import Linear, Stored, fuse
from serve.engine.native import library
from serve.engine.quantised import Scheme
from train.compress.options import Option, fitting_group
from train.compress.store import Store

__all__ = ["Times", "machine", "seconds", "seconds_by_tokens"]

_ROUNDS = 3
_MOST_BYTES = 256 << 20
_MOST_COPIES = 64


class Times:
    """(option, rows, columns) -> seconds of a product for one token, measured once per store and machine.

    A search that is taken up again has to see the times that it began with, or the plans that it judged are not among its own.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._table = store, store.read("seconds", machine())

    def __call__(self, option: Option, rows: int, columns: int) -> float:
        name = f"{option.name} {rows}x{columns}"
        if name not in self._table:
            self._table[name] = seconds(option, rows, columns)[0]
            self._store.write("seconds", machine(), self._table)
        return float(self._table[name])


def machine() -> list[str]:
    """What times depend on, the shapes aside: the processor, and how many threads are used."""
    told = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", told.read_text(), re.MULTILINE) if told.exists() else None
    return [model[1] if model else platform.processor() or platform.machine(), str(torch.get_num_threads())]


def seconds(option: Option, rows: int, columns: int) -> tuple[float, float, float]:
    """Of one product with a matrix [rows, columns] under `option`, for 1, 8 and 32 tokens."""
    one, eight, many = seconds_by_tokens(option, rows, columns, (1, 8, 32))
    return one, eight, many


def seconds_by_tokens(option: Option, rows: int, columns: int, tokens: tuple[int, ...]) -> tuple[float, ...]:
    """The same for any numbers of tokens."""
    return _measured(_run_as(option, columns), rows, columns, tokens, torch.get_num_threads())


def _run_as(option: Option, columns: int) -> Scheme | None:
    """How the engine holds it: see `options.has_kernel`."""
    if option.kind != "int":
        return None
    return Scheme(4 if option.bits == 4 else 8, fitting_group(option.group_size, columns))


@functools.cache
def _measured(scheme: Scheme | None, rows: int, columns: int, tokens: tuple[int, ...], num_threads: int) -> tuple[float, ...]:
    each = rows * columns * (scheme.bits if scheme else 16) // 8
    num_copies = max(2, min(_MOST_COPIES, min(4 * _cache_bytes(), _MOST_BYTES) // each))
    copies = [_linear(scheme, rows, columns) for _ in range(num_copies)]
    return tuple(_time(copies, torch.randn(count, columns).bfloat16()) for count in tokens)


@torch.inference_mode()
def _time(copies: list[Linear], x: torch.Tensor) -> float:
    least = [float("inf")] * len(copies)
    for _ in range(_ROUNDS + 1):  # the first warms up; a minimum needs no telling apart
        for index, linear in enumerate(copies):
            start = time.perf_counter()
            linear(x)
            least[index] = min(least[index], time.perf_counter() - start)
    return statistics.median(least)


def _linear(scheme: Scheme | None, rows: int, columns: int) -> Linear:
    native = library.native("auto")
    if scheme is None:
        return fuse([Stored(torch.randn(rows, columns).bfloat16())], native=native)
    packed = torch.randint(0, 256, (rows, -(-columns * scheme.bits // 8)), dtype=torch.uint8)
    scale = torch.rand(rows, columns // (scheme.group or columns)).bfloat16()
    return fuse([Stored(packed, None, scheme, columns, scale)], native=native)


@functools.cache
def _cache_bytes() -> int:
    """The last-level cache, 32 MB where the machine does not tell."""
    told = os.sysconf("SC_LEVEL3_CACHE_SIZE") if "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names else 0
    return told if told > 0 else 32 << 20
