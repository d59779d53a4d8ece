"""transformers as a worker: `generate` for requests that arrive together, its continuous batching for those that do not.

`generate` wants prompts of one length here, so that no system computes padding. Options: `attention` (transformers' name),
`continuous` (the fields of ContinuousBatchingConfig), and those of `generate` under `generate`.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.workers.protocol import Answer, Question, work


class Clock:
    """A streamer that notes when each step's tokens came."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, list[int]]] = []

    def put(self, value: Any) -> None:
        """Called with the prompt first, then with one token for each row."""
        self.steps.append((time.perf_counter(), value.flatten().tolist()))

    def end(self) -> None:
        """Nothing is held back."""


class Transformers:
    """A causal language model of transformers."""

    def load(self, model: str, options: dict[str, Any]) -> None:
        """bfloat16 unless `dtype` says otherwise."""
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(options.get("num_threads", 2))
        self._torch, self._options = torch, options
        self._model = AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, options.get("dtype", "bfloat16")), attn_implementation=options.get("attention", "sdpa")
        ).eval()
        self._end = self._model.generation_config.eos_token_id

    def serve(self, questions: list[Question]) -> list[Answer]:
        """Together in one padded batch, or by arrival with continuous batching."""
        return self._together(questions) if all(q.at == 0 for q in questions) else self._arriving(questions)

    def _together(self, questions: list[Question]) -> list[Answer]:
        torch, clock, answers = self._torch, Clock(), [Answer() for _ in questions]
        first = questions[0]
        assert all((len(q.prompt), q.tokens) == (len(first.prompt), first.tokens) for q in questions), "one length, so no padding"
        ids = torch.tensor([q.prompt for q in questions])
        sampling = {"do_sample": True, "temperature": first.temperature} if first.temperature else {"do_sample": False}
        torch.manual_seed(first.seed)
        began = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=first.tokens,
                eos_token_id=self._end if first.end else None,
                pad_token_id=0,
                streamer=clock,
                **sampling,
                **self._options.get("generate", {}),
            )
        for at, tokens in clock.steps[1:]:
            for answer, token in zip(answers, tokens, strict=True):
                answer.more([token], at - began)
        return answers

    def _arriving(self, questions: list[Question]) -> list[Answer]:
        """A manager thread of transformers' own computes; requests are handed to it at their arrival times."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        how = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=max(q.tokens for q in questions))
        manager = self._model.init_continuous_batching(
            generation_config=how, continuous_batching_config=ContinuousBatchingConfig(**self._options.get("continuous", {}))
        )
        answers = [Answer() for _ in questions]
        order = sorted(range(len(questions)), key=lambda i: questions[i].at)
        manager.start()
        began, arrived, live = time.perf_counter(), 0, 0
        try:
            while live or arrived < len(order):
                now = time.perf_counter() - began
                while arrived < len(order) and questions[order[arrived]].at <= now:
                    q = questions[order[arrived]]
                    manager.add_request(q.prompt, request_id=str(order[arrived]), max_new_tokens=q.tokens, streaming=True)
                    arrived, live = arrived + 1, live + 1
                left = questions[order[arrived]].at - now if arrived < len(order) else 1.0
                output = manager.get_result(timeout=max(left, 0.001))
                if output is None:
                    if not manager.is_running():
                        raise RuntimeError("continuous batching stopped by itself")
                    continue
                if output.error:
                    raise RuntimeError(output.error)
                index = int(output.request_id)
                new = list(output.generated_tokens)[len(answers[index].tokens) :]
                answers[index].more(new, time.perf_counter() - began - questions[index].at)
                live -= output.is_finished()
        finally:
            manager.stop(block=True)
        return answers


if __name__ == "__main__":
    work(Transformers())
