"""vLLM as a worker, in the peers' environment: its own engine in this process, stepped as we step ours, prefix cache off."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from benchmarks.workers.protocol import Answer, Question, drive, work

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # no second process between the clock and the engine: the faster way
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


class Vllm:
    """vLLM's engine."""

    def load(self, model: str, options: dict[str, Any]) -> None:
        """Options go to `vllm.LLM`."""
        from vllm import LLM, SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._params, self._delta = SamplingParams, RequestOutputKind.DELTA
        self._engine = LLM(model=model, enable_prefix_caching=False, disable_log_stats=True, **options).llm_engine
        self._num_asked = 0
        self._index: dict[str, int] = {}

    def serve(self, questions: list[Question]) -> list[Answer]:
        """Driven step by step."""
        return drive(self, questions)

    def add(self, index: int, question: Question) -> None:
        """A request arrives."""
        self._num_asked += 1
        name = str(self._num_asked)
        self._index[name] = index
        params = self._params(
            temperature=question.temperature,
            seed=question.seed if question.temperature else None,
            max_tokens=question.tokens,
            ignore_eos=not question.end,
            output_kind=self._delta,
        )
        self._engine.add_request(name, {"prompt_token_ids": question.prompt}, params)

    def step(self) -> Iterator[tuple[int, list[int], bool]]:
        """vLLM's own step."""
        for output in self._engine.step():
            index = self._index.pop(output.request_id) if output.finished else self._index[output.request_id]
            yield index, list(output.outputs[0].token_ids), output.finished


if __name__ == "__main__":
    work(Vllm())
