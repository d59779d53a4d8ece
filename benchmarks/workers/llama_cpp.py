"""llama.cpp as a worker, in the peers' environment, through its C interface: one batch of rows a step, greedy.

Promise: the same questions in lock step (all prompts, then one token for every row at a time), for requests that arrive together.
The model folder becomes a bf16 GGUF file of the same weights beside the figures (see `gguf_file.py`). Price: the file once more on disk.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

from benchmarks.workers.gguf_file import write_gguf
from benchmarks.workers.protocol import Answer, Question, work

CHUNK = 512  # tokens of prompts in one pass, as in our engine


class LlamaCpp:
    """llama.cpp's model and context."""

    def load(self, model: str, options: dict[str, Any]) -> None:
        """Options: `scratch` (folder for the GGUF file), `num_threads`, `max_sequences`, `max_length`."""
        import llama_cpp
        import numpy as np

        self._c, self._np = llama_cpp, np
        file = write_gguf(Path(model), Path(options["scratch"]))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp could not load {file}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        context = llama_cpp.llama_context_default_params()
        sequences, length = options.get("max_sequences", 16), options.get("max_length", 512)
        context.n_ctx, context.n_seq_max = sequences * length, sequences
        context.n_batch = context.n_ubatch = CHUNK
        context.n_threads = context.n_threads_batch = options.get("num_threads", 2)
        context.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        self._batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)

    def serve(self, questions: list[Question]) -> list[Answer]:
        """All prompts, then all rows one token at a time."""
        assert all(q.at == 0 and q.temperature == 0 for q in questions), "together and greedy only"
        c, answers, began = self._c, [Answer() for _ in questions], time.perf_counter()
        c.llama_memory_clear(c.llama_get_memory(self._context), False)
        rows = [(t, p, s, p == len(q.prompt) - 1) for s, q in enumerate(questions) for p, t in enumerate(q.prompt)]
        for first in range(0, len(rows), CHUNK):
            self._pass(rows[first : first + CHUNK], answers, began)
        for step in range(1, max(q.tokens for q in questions)):
            live = [s for s, q in enumerate(questions) if step < q.tokens]
            rows = [(answers[s].tokens[-1], len(questions[s].prompt) + step - 1, s, True) for s in live]
            self._pass(rows, answers, began)
        return answers

    def _pass(self, rows: list[tuple[int, int, int, bool]], answers: list[Answer], began: float) -> None:
        """Compute rows of (token, position, sequence, whether its logits are wanted); note the likeliest next tokens."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        if status := self._c.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode: status {status}")
        chosen = []
        for i, (_, _, sequence, wanted) in enumerate(rows):
            if wanted:
                logits = self._c.llama_get_logits_ith(self._context, i)
                row = self._np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self._vocab,))
                chosen.append((sequence, int(row.argmax())))
        at = time.perf_counter() - began
        for sequence, token in chosen:
            answers[sequence].more([token], at)


if __name__ == "__main__":
    work(LlamaCpp())
