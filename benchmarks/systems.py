"""The systems under measurement, each a subprocess in its own environment, asked over a pipe.

Promise: a system is started when it is first asked, holds its model from then on, and works only while it is asked: one set of threads
at a time. What cannot start is reported with its reason and leaves the others alone. Memory is the kernel's own high-water mark.
Price: each system's memory for as long as it lives. Protocol: `workers/protocol.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.console import say

__all__ = ["NotThere", "Spec", "Worker", "catalogue"]

ROOT = Path(__file__).resolve().parents[1]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
MAX_LENGTH = 512
"""Tokens of context that every system is given: prompts of 256 and outputs of 128 fit, and nobody reserves for more."""


class NotThere(RuntimeError):
    """A system cannot be measured here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A row of the comparison."""

    name: str
    module: str
    """What `python -m` runs."""
    python: Path
    needs: str
    """The package that must be importable there."""
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    weights: str = "bf16"
    """bf16, int8 or int4: which of the model's folders it is given."""
    arrivals: bool = True
    """Whether it can be given requests that arrive one after the other."""


def catalogue(threads: int, max_sequences: int, scratch: Path) -> list[Spec]:
    """Every system, with the same number of threads, sequences and tokens of context for all."""
    here = Path(sys.executable)
    ours = {"dtype": "bfloat16", "draft": "off", "prefix_cache": False, "max_sequences": max_sequences, "max_length": MAX_LENGTH}
    ours["num_threads"] = threads
    omp = {"OMP_NUM_THREADS": str(threads)}
    bound = {**omp, "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}"}
    vllm = {"dtype": "bfloat16", "max_model_len": MAX_LENGTH, "max_num_seqs": max_sequences}
    blocks = max_sequences * -(-MAX_LENGTH // 256) + 2
    continuous = {"num_blocks": blocks, "max_batch_tokens": 512, "use_async_batching": False, "use_cuda_graph": False}
    generate = {"num_threads": threads, "dtype": "bfloat16", "continuous": continuous}
    llama = {"num_threads": threads, "max_sequences": max_sequences, "max_length": MAX_LENGTH, "scratch": str(scratch)}
    worker = "benchmarks.workers"
    return [
        Spec(name="sterna", module=f"{worker}.sterna", python=here, needs="torch", options=ours, environment=omp),
        Spec(name="sterna int8", module=f"{worker}.sterna", python=here, needs="torch", options=ours, environment=omp, weights="int8"),
        Spec(name="sterna int4", module=f"{worker}.sterna", python=here, needs="torch", options=ours, environment=omp, weights="int4"),
        Spec(name="vllm", module=f"{worker}.vllm", python=PEERS_PYTHON, needs="vllm", options=vllm, environment=bound),
        Spec(name="transformers", module=f"{worker}.transformers", python=here, needs="transformers", options=generate, environment=omp),
        Spec(
            name="llama.cpp",
            module=f"{worker}.llama_cpp",
            python=PEERS_PYTHON,
            needs="llama_cpp",
            options=llama,
            environment=omp,
            arrivals=False,
        ),
    ]


class Worker:
    """A system with a model, started at its first question."""

    def __init__(self, spec: Spec, model: Path) -> None:
        self.spec, self.model = spec, model
        self.cold_start_s: float | None = None
        """From starting the process to its first token, for a prompt of 16 tokens."""
        self.peak_rss = 0
        """Most bytes resident in the worker and its children, shared pages counted in full."""
        self.peak_pss = 0
        """The same with shared pages divided among the processes that share them."""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start and load. NotThere if the system is not installed here or cannot load the model."""
        if self._process is not None:
            return
        if not self.spec.python.exists():
            raise NotThere(f"{self.spec.name}: {self.spec.python} is not there; run `make peers`")
        say(f"{self.spec.name}: loading {self.model.name}")
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [self.spec.python, "-m", self.spec.module],
            cwd=ROOT,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **self.spec.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("STERNA_BENCH_LOUD") else subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._say({"do": "load", "model": str(self.model), "options": self.spec.options})
        self.ask([{"prompt": list(range(5, 21)), "tokens": 1}])
        self.cold_start_s = time.perf_counter() - began

    def ask(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        """The answers to requests (`protocol.Question`'s fields), in their order."""
        self.start()
        return self._say({"do": "serve", "requests": requests})

    @property
    def alive(self) -> bool:
        """Whether it has started and not failed."""
        return self._process is not None

    def resident(self) -> int:
        """Bytes resident now in the worker and its children; 0 when it is not there."""
        return 0 if self._process is None else sum(_kilobytes(p, "status", "VmRSS") for p in _family(self._process.pid)) * 1024

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _say(self, message: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps(message), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = process.wait()
            self._process = None
            raise NotThere(f"{self.spec.name}: its process ended with code {code}; set STERNA_BENCH_LOUD=1 to see why")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            self.close()
            raise NotThere(f"{self.spec.name}: {reply['error']}")
        family = _family(process.pid)
        self.peak_rss = max(self.peak_rss, sum(_kilobytes(p, "status", "VmHWM") for p in family) * 1024)
        self.peak_pss = max(self.peak_pss, sum(_kilobytes(p, "smaps_rollup", "Pss") for p in family) * 1024)
        return reply


def _family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found, new = [pid], [pid]
    while new:
        children = [int(c) for p in new for c in _read(f"/proc/{p}/task/{p}/children").split()]
        found, new = found + children, children
    return found


def _kilobytes(pid: int, file: str, key: str) -> int:
    lines = _read(f"/proc/{pid}/{file}").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def _read(path: str) -> str:
    """A file of /proc; empty when its process has gone."""
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
