"""Our engine as a worker. Options are `EngineConfig`'s fields; the prefix cache is off unless asked for, for rounds repeat prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.workers.protocol import Answer, Question, drive, work


class Sterna:
    """The engine, stepped."""

    def load(self, model: str, options: dict[str, Any]) -> None:
        """Options go to `EngineConfig`."""
        from serve.engine.config import EngineConfig
        from serve.engine.engine import Engine
        from serve.engine.request import Request, Sampling

        self._request, self._sampling = Request, Sampling
        self._engine = Engine.load(model, EngineConfig(**{"prefix_cache": False, **options}))

    def serve(self, questions: list[Question]) -> list[Answer]:
        """Driven step by step."""
        return drive(self, questions)

    def add(self, index: int, question: Question) -> None:
        """A request arrives."""
        how = self._sampling(max_tokens=question.tokens, temperature=question.temperature, seed=question.seed, ignore_eos=not question.end)
        self._engine.add(self._request(id=str(index), prompt=tuple(question.prompt), sampling=how))

    def step(self) -> Iterator[tuple[int, list[int], bool]]:
        """The engine's step."""
        for emission in self._engine.step():
            yield int(emission.request_id), list(emission.tokens), emission.finish_reason is not None


if __name__ == "__main__":
    work(Sterna())
