"""An engine that answers batches of rows: several batches share its running sequences, each is written as it completes.

Promise: a batch is one file, named after its first row and written whole; a batch that is already there is not computed again,
so a task may be repeated, by Ray or by the next run, at no cost and without a second row. A row that cannot be answered gets
finish_reason "error" and the reason. Price: one thread beside the engine's caller. Works as a Ray Data callable class.
"""

from __future__ import annotations

import json
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pyarrow import fs as arrow_fs

from cluster.storage import resolve
from pipelines.config import GenerateConfig
from pipelines.rows import Staged, open_staged, write_table
from serve.engine.engine import Engine
from serve.engine.request import Emission, Request, Sampling
from serve.folder import adapter_folder
from train.model_folder import open_model

__all__ = ["ANSWER", "Answer", "BatchEngine", "EngineThread", "answers_uri", "seed_of", "summary"]

USAGE = pa.struct([("prompt_tokens", pa.int64()), ("completion_tokens", pa.int64())])
ANSWER = pa.schema(
    [("row", pa.int64()), ("output", pa.string()), ("finish_reason", pa.string()), ("usage", USAGE), ("error", pa.string())]
)  # fmt: skip
"""What is added to the input's columns."""
_ADAPTER = "asked"
"""The engine's name for the adapter that answers all rows."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a row."""

    output: str | None
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None


def seed_of(seed: int, row: int) -> int:
    """The seed of a row: the same on every run, unlike its neighbours'.

    >>> seed_of(0, 1) == seed_of(0, 1) != seed_of(0, 2)
    True
    """
    return xxhash.xxh3_64_intdigest(f"{seed}:{row}".encode()) >> 1


def answers_uri(work: str, first: int) -> str:
    """Where the batch that begins with row `first` is written."""
    return f"{work}/answers/{first:012d}.parquet"


def summary(table: pa.Table) -> dict[str, Any]:
    """Of a written batch: its first row, and arrays of its rows' completion tokens and errors."""
    tokens = [usage["completion_tokens"] for usage in table["usage"].to_pylist()]
    errors = [reason == "error" for reason in table["finish_reason"].to_pylist()]
    return {"first": table["row"][0].as_py(), "tokens": np.array(tokens), "errors": np.array(errors)}


class EngineThread(threading.Thread):
    """The one thread that calls the engine: takes requests from any thread, gives each a future Answer."""

    def __init__(self, folder: Path, config: Any) -> None:
        super().__init__(daemon=True)
        self._folder, self._config = folder, config
        self._asked: queue.SimpleQueue[tuple[Request, Future[Answer]]] = queue.SimpleQueue()
        self._open: dict[str, tuple[Future[Answer], list[str], list[int]]] = {}
        self.ready: Future[Engine] = Future()
        self._broken: BaseException | None = None
        self._lock = threading.Lock()

    def ask(self, request: Request) -> Future[Answer]:
        """Queue a request; its future is set when it has finished."""
        future: Future[Answer] = Future()
        with self._lock:
            if self._broken is not None:
                raise RuntimeError("the engine has stopped") from self._broken
            self._asked.put((request, future))
        return future

    def run(self) -> None:
        """Load the engine and step it for as long as the process lives; whatever ends this ends every request with it."""
        try:
            engine = Engine.load(self._folder, self._config)
            self.ready.set_result(engine)
            while True:
                self._admit(engine)
                for emission in engine.step():
                    self._note(emission)
        except BaseException as error:  # handed on to everyone who waits, nothing is swallowed
            self._break(error)

    def _admit(self, engine: Engine) -> None:
        """Take what was asked; wait for it when there is nothing else to do."""
        while not engine.has_work or not self._asked.empty():
            request, future = self._asked.get()
            try:
                engine.add(request)
            except ValueError as error:
                future.set_result(Answer(None, "error", len(request.prompt), 0, str(error)))
            except BaseException as error:  # it is in nobody's hands but ours
                future.set_exception(error)
                raise
            else:
                self._open[request.id] = (future, [], [])

    def _note(self, emission: Emission) -> None:
        future, text, tokens = self._open[emission.request_id]
        text.append(emission.text)
        tokens.append(len(emission.tokens))
        if emission.finish_reason is not None:
            del self._open[emission.request_id]
            future.set_result(Answer("".join(text), emission.finish_reason, emission.num_prompt_tokens, sum(tokens)))

    def _break(self, error: BaseException) -> None:
        with self._lock:
            self._broken = error
            waiting = [future for future, _, _ in self._open.values()]
            while not self._asked.empty():
                waiting.append(self._asked.get()[1])
        for future in [*waiting, *([] if self.ready.done() else [self.ready])]:
            future.set_exception(error)


class BatchEngine:
    """The callable class that Ray Data runs: a batch of rows in, written, and a summary out."""

    def __init__(self, config: GenerateConfig, work: str, column: str, num_threads: int) -> None:
        folder, _ = open_model(config.model)
        self.config, self.work, self.column = config, work, column
        self.staged: Staged = open_staged(f"{work}/input")
        self._schema = pa.schema([*self.staged.schema, *ANSWER])
        threads = config.engine.num_threads or num_threads
        adapters = (f"{_ADAPTER}={adapter_folder(config.adapter)}",) if config.adapter else ()
        self._thread = EngineThread(folder, replace(config.engine, num_threads=threads, adapters=adapters))
        self._thread.start()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer the batches that begin at rows batch["first"] (each up to batch["last"], excluded) and say what was done.

        A model that the engine refuses is the user's mistake, handed to the driver as one line and not as a dead actor.
        """
        try:
            self._thread.ready.result()
        except ValueError as error:
            nothing = np.zeros(len(batch["first"]), np.int64)
            return {
                "first": nothing,
                "tokens": nothing,
                "errors": nothing,
                "rows": nothing,
                "mistake": np.array([str(error)] * len(nothing)),
            }
        done = [summary(self._answered(int(first), int(last))) for first, last in zip(batch["first"], batch["last"], strict=True)]
        return {
            "first": np.array([each["first"] for each in done]),
            "tokens": np.array([int(each["tokens"].sum()) for each in done]),
            "errors": np.array([int(each["errors"].sum()) for each in done]),
            "rows": np.array([len(each["errors"]) for each in done]),
            "mistake": np.array([""] * len(done)),
        }

    def _answered(self, first: int, last: int) -> pa.Table:
        place = answers_uri(self.work, first)
        filesystem, path = resolve(place)
        if filesystem.get_file_info(path).type == arrow_fs.FileType.File:
            return pq.read_table(path, filesystem=filesystem, columns=["row", "usage", "finish_reason"])
        rows = self.staged.rows(first, last)
        waiting = [self._ask(first + index, prompt) for index, prompt in enumerate(rows[self.column].to_pylist())]
        table = self._join(rows, first, [each if isinstance(each, Answer) else each.result() for each in waiting])
        write_table(table, place)
        return table

    def _ask(self, row: int, prompt: Any) -> Answer | Future[Answer]:
        sampling: Sampling = self.config.sampling(seed_of(self.config.seed, row))
        try:
            tokens = self._encode(prompt)
            request = Request(id=str(row), prompt=tuple(tokens), sampling=sampling, adapter=_ADAPTER if self.config.adapter else "")
        except ValueError as error:
            return Answer(None, "error", error=str(error))
        return self._thread.ask(request)

    def _encode(self, prompt: Any) -> list[int]:
        tokenizer = self._thread.ready.result().tokenizer
        if isinstance(prompt, str) and self.column in self.staged.mixed:
            prompt = _messages_or_text(prompt)
        if isinstance(prompt, str) and prompt:
            return tokenizer.encode(prompt)
        if _are_messages(prompt):
            return tokenizer.encode_chat([{**message, "content": self._flat(message["content"])} for message in prompt])
        what = "missing" if prompt is None else "empty" if not prompt else f"a {type(prompt).__name__}, not a text or messages"
        raise ValueError(f"{self.column}: {what}")

    def _flat(self, content: Any) -> Any:
        """The text of a list of parts, as the service takes them; other contents as they are."""
        if not isinstance(content, list):
            return content
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise ValueError(f"{self.column}: a content part of type {kind!r} is not text")
        return "".join(part["text"] for part in content)

    def _join(self, rows: pa.Table, first: int, answers: list[Answer]) -> pa.Table:
        usage = [{"prompt_tokens": a.prompt_tokens, "completion_tokens": a.completion_tokens} for a in answers]
        added = {
            "row": pa.array(range(first, first + len(answers)), pa.int64()),
            "output": pa.array([a.output for a in answers], pa.string()),
            "finish_reason": pa.array([a.finish_reason for a in answers], pa.string()),
            "usage": pa.array(usage, USAGE),
            "error": pa.array([a.error for a in answers], pa.string()),
        }
        return pa.table([*rows.columns, *added.values()], schema=self._schema)


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and m.get("role") and "content" in m for m in value)


def _messages_or_text(text: str) -> Any:
    """The messages that a column of several kinds holds as JSON, or the text itself."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if _are_messages(value) else text
