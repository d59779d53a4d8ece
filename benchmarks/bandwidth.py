"""How fast this machine reads memory: the floor under every decoding step, which must read all weights.

Promise: bytes per second of `threads` threads that each sum their share of a buffer with 512-bit loads where the machine has them, the
fastest of a few passes. Two sizes matter: one far beyond the caches (RAM), and the model's own size (a small model may live in the last
cache). Price: a g++ call of a second, then some 10 ms a pass.

Source: STREAM (McCalpin), reading only.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np

__all__ = ["read_bandwidth"]

_SOURCE = """
#include <cstddef>
extern "C" double total(const double* data, size_t count, int threads) {
    double sum = 0;
    #pragma omp parallel for simd reduction(+ : sum) num_threads(threads) schedule(static)
    for (size_t i = 0; i < count; i++) sum += data[i];
    return sum;
}
"""


@cache
def _library() -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(prefix="sterna-bandwidth-"))
    (folder / "total.cpp").write_text(_SOURCE)
    # not -ffast-math: merely loading such a library makes the whole process flush subnormal numbers
    flags = ["-O3", "-march=native", "-fopenmp", "-mprefer-vector-width=512", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, "total.cpp", "-o", "total.so"], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "total.so"))
    library.total.restype = ctypes.c_double
    library.total.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


@cache
def _buffer(num_bytes: int) -> np.ndarray:
    return np.ones(max(1, num_bytes // 8))


def read_bandwidth(num_bytes: int, threads: int, passes: int = 5) -> float:
    """Bytes per second read from a buffer of `num_bytes`."""
    data, best = _buffer(num_bytes), float("inf")
    for _ in range(passes):
        began = time.perf_counter()
        _library().total(data.ctypes.data, data.size, threads)
        best = min(best, time.perf_counter() - began)
    return data.nbytes / best
