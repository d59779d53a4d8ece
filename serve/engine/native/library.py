"""The engine's own C++ kernels: compiled once by g++, then loaded from a cache.

Promise: `load(name)` gives the library of `name`.cpp, compiled at most once for its sources and flags even when several processes start
together (a lock, and an atomic rename); `refusal()` says in one line why this machine cannot run it. Price: a few seconds of g++ the
first time, some milliseconds after that; `python -m serve.engine.native.library` pays it ahead (for images: g++ is not needed afterwards).
The kernels share torch's own OpenMP pool: two pools on the same cores would wait for each other.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

__all__ = ["NAMES", "NativeError", "build", "cache_folder", "load", "native", "refusal"]

NAMES = ("linear", "decoder")
"""The libraries: one per .cpp file here."""
CPU_FLAGS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni", "bmi2", "fma")
_FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-fPIC", "-fopenmp", "-fno-math-errno"),
    "-fno-tree-partial-pre",  # it makes g++ 12 spill the sums of a tile
    *("-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-Wno-uninitialized"),  # g++ 12 suspects its own intrinsics
    *(f"-m{flag.replace('avx512_', 'avx512')}" for flag in CPU_FLAGS),
)
_SOURCES = Path(__file__).parent
_TIME_LIMIT_S = 300
_log = logging.getLogger(__name__)


class NativeError(RuntimeError):
    """Why the kernels cannot be had here, in one line."""


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sterna" / "native"


def build(name: str, *, compiler: str = "g++", folder: Path | None = None) -> Path:
    """The compiled `name`.cpp, from the cache or by `compiler`; NativeError if that fails."""
    try:
        folder = folder or cache_folder()
    except RuntimeError as error:  # pathlib's, for a user without an entry and without HOME, as containers may have
        raise NativeError(f"no folder to keep the compiled kernels in ({error}); set XDG_CACHE_HOME") from None
    target = folder / f"{name}-{_digest(name)}.so"
    try:
        if target.exists():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits and finds it done
            if not target.exists():
                _compile(_SOURCES / f"{name}.cpp", target, compiler)
    except OSError as error:
        raise NativeError(f"cannot write the compiled kernels to {folder} ({error.strerror}); set XDG_CACHE_HOME") from None
    return target


def _compile(source: Path, target: Path, compiler: str) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        output = Path(scratch) / target.name
        command = [compiler, *_FLAGS, str(source), "-o", str(output), *_openmp()]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIME_LIMIT_S)
        except FileNotFoundError:
            raise NativeError(f"no compiler {compiler}; install g++ 12 or newer") from None
        except subprocess.TimeoutExpired:
            raise NativeError(f"{compiler} took more than {_TIME_LIMIT_S} s over {source.name}") from None
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if "error" in line] or error.stderr.splitlines() or ["no message"]
            raise NativeError(f"{compiler} failed on {source.name}: {lines[0][:200]}") from None
        output.replace(target)


def _openmp() -> Sequence[str]:
    """Link arguments that name the very OpenMP library torch has loaded, whatever its wheel calls it."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(found[0]), f"-Wl,-rpath,{found[0].parent}"] if found else []


def _digest(name: str) -> str:
    """Names what the library is made of: sources, flags, OpenMP. Not the compiler: an image may ship the result without it."""
    parts = [*_FLAGS, *_openmp()]
    for source in _closure(_SOURCES / f"{name}.cpp"):
        parts += [source.name, source.read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _closure(source: Path) -> list[Path]:
    """A source and every file of ours that it includes, at whatever depth."""
    seen = [source]
    for file in seen:
        for included in re.findall(r'^#include "(.+)"', file.read_text(), re.MULTILINE):
            path = file.parent / included
            if path not in seen:
                seen.append(path)
    return sorted(seen)


@functools.cache
def load(name: str) -> ctypes.CDLL:
    """The library, for this process; NativeError if this machine lacks the instructions or the compiler."""
    missing = _missing_flags()
    if missing:
        raise NativeError(f"this processor lacks {', '.join(missing)}")
    try:
        return ctypes.CDLL(str(build(name)))
    except OSError as error:
        raise NativeError(f"cannot load the compiled kernels ({error}); delete {cache_folder()}") from None


def _missing_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    if not cpuinfo.exists():
        return ["Linux"]
    line = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    has = set(line[1].split()) if line else set()
    return [flag for flag in CPU_FLAGS if flag not in has]


@functools.cache
def refusal() -> str | None:
    """Why the kernels cannot run here; None if they can. Builds them if need be."""
    try:
        for name in NAMES:
            load(name)
    except NativeError as error:
        return str(error)
    return None


def native(kernels: Literal["auto", "native", "torch"] = "auto") -> bool:
    """Whether to run on our kernels: `auto` says once why not, `native` insists (ValueError)."""
    if kernels == "torch":
        return False
    reason = refusal()
    if reason is not None and kernels == "native":
        raise ValueError(f"kernels: native kernels cannot run here: {reason}; use auto or torch")
    if reason is not None:
        _say_once(reason)
    return reason is None


@functools.cache
def _say_once(reason: str) -> None:
    _log.warning("running on torch's kernels, which are slower and sum in another order at other widths: %s", reason)


def main() -> None:
    """Compile everything ahead of time."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in NAMES:
        _log.info("%s", build(name))


if __name__ == "__main__":
    main()
