"""`sterna generate`: answer every row of a data set with a model, each exactly once, whatever is killed meanwhile.

Promise: rows are known by their position, so repeated prompts are rows of their own; batches of rows are written whole as
they complete, and a rerun does only those that are missing. The output has the input's rows in its order. Price: the input is
copied once while the job runs; a kill costs the batches that were being computed.
Source: Ray Data schedules the batches over a pool of engines and replaces engines that die. Its own row checkpointing commits
with its writes, which wait for bundles: a killed trial run had lost all 192 rows it had computed (docs/decisions).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from pyarrow import fs as arrow_fs

from cluster import figure
from cluster.artifact import Artifact, Draft, finished, open_artifact, publish
from cluster.console import progress, say
from cluster.ledger import Bill
from cluster.meter import Meter
from cluster.runtime import attached
from cluster.storage import absolute, content_digest, resolve
from pipelines.batch_engine import ANSWER, BatchEngine, answers_uri
from pipelines.config import GenerateConfig
from pipelines.rows import Staged, input_digest, stage, write_table
from pipelines.streaming import streaming
from serve.engine.text import Tokenizer
from serve.folder import adapter_folder
from train.model_folder import open_model

__all__ = ["generate"]

_MOST_BATCHES = 5_000
_PART_ROWS = 50_000
_MOST_CPUS = 8


def generate(config: GenerateConfig) -> Artifact:
    """Answer the rows of `config.input` with `config.model` into `config.output`.

    Raises ValueError for a folder that is no model (or no adapter), an input without files, without readable rows or without prompts.
    """
    config = replace(config, model=absolute(config.model), adapter=config.adapter and absolute(config.adapter))
    folder, digest = open_model(config.model)
    inputs = {"model": digest, "input": input_digest(config.input)}
    if config.adapter:
        inputs["adapter"] = content_digest(str(adapter_folder(config.adapter)))
    same_work = replace(config, concurrency=0, cpus_per_engine=0, node_prices={})  # a rerun on other machines goes on with this one's work
    if done := finished(config.output, stage="generate", inputs=inputs, config=same_work):
        say(f"{config.output}: already done")
        return done
    with publish(config.output, stage="generate", inputs=inputs, config=same_work) as draft:
        work, draft.disposable = f"{draft.uri}/work", ["work/input"]
        staged = stage(config.input, f"{work}/input")
        column = _prompt_column(config, staged, folder)
        batches = _batches(staged.num_rows, config.batch_size)
        started = time.monotonic()
        curve, bill = _run(config, work, column, batches) if not _gathered(draft, staged) else ([], None)
        seconds = time.monotonic() - started
        _gather(draft, work, batches, staged)
        _fill(draft, staged, curve, seconds)
        _charge(draft, bill)
    return open_artifact(config.output, made_by="generate")


def _answered(work: str) -> set[str]:
    """Names of the batches' files that are there."""
    filesystem, path = resolve(f"{work}/answers")
    found = filesystem.get_file_info(arrow_fs.FileSelector(path, allow_not_found=True))
    return {info.base_name for info in found if info.base_name.endswith(".parquet")}


def _prompt_column(config: GenerateConfig, staged: Staged, folder: Path) -> str:
    """The column to read prompts from; ValueError when there is none, or when an added column would hide an input's."""
    names = staged.schema.names
    if clash := [name for name in ANSWER.names if name in names]:
        raise ValueError(f"{config.input}: has a column {clash[0]!r} of its own, which the answers need; rename it")
    column = config.prompt_column or next((name for name in ("prompt", "messages") if name in names), "prompt")
    if column not in names:
        raise ValueError(f"{config.input}: no column {column!r}; set prompt_column to one of {', '.join(names)}")
    kind = staged.schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise ValueError(f"{config.input}: column {column!r} holds {kind}, not texts or messages; set prompt_column to another")
    if pa.types.is_list(kind) and not Tokenizer(folder).has_chat_template:
        raise ValueError(f"{config.model}: has no chat template, so it cannot answer messages; give texts in {column!r}, or a tuned model")
    return column


def _batches(num_rows: int, batch_size: int) -> list[tuple[int, int]]:
    """(first, last) rows of each batch, last excluded; larger batches where there would be too many.

    >>> _batches(10, 4)
    [(0, 4), (4, 8), (8, 10)]
    """
    size = max(batch_size, -(-num_rows // _MOST_BATCHES))
    return [(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]


def _run(config: GenerateConfig, work: str, column: str, batches: list[tuple[int, int]]) -> tuple[list[tuple[float, int]], Bill | None]:
    """Compute the batches that are not there yet; returns (seconds, tokens so far) as they came, and what that cost."""
    filesystem, answers = resolve(f"{work}/answers")
    filesystem.create_dir(answers, recursive=True)
    there = _answered(work)
    missing = [(first, last) for first, last in batches if answers_uri(work, first).rsplit("/", 1)[-1] not in there]
    if len(missing) < len(batches):
        say(f"generate: {len(batches) - len(missing)} of {len(batches)} batches were done before")
    if not missing:
        return [], None
    total, rows = sum(last - first for first, last in missing), 0
    curve, tokens, began = [(0.0, 0)], 0, time.monotonic()
    with attached(), streaming(), progress("generate", total, "rows") as advance:
        meter = Meter(config.node_prices)
        bill = meter.bill(0)
        for done in _dataset(config, work, column, missing):
            if done["mistake"]:
                raise ValueError(done["mistake"])
            tokens += int(done["tokens"])
            rows += int(done["rows"])
            curve.append((time.monotonic() - began, tokens))
            bill = meter.bill(tokens)
            advance(int(done["rows"]), f"{tokens / curve[-1][0]:,.0f} tokens/s{_cost_words(bill, rows / total)}")
    return curve, bill


def _cost_words(bill: Bill, share: float) -> str:
    """What was paid, and what all of it will cost if the rest goes like the share that is done; nothing without prices."""
    if bill.per_million_tokens is None:
        return ""
    return f"  ${bill.dollars:,.2f} of about ${bill.dollars / share:,.2f}"


def _charge(draft: Draft, bill: Bill | None) -> None:
    """Say what this run cost, where the machines have prices."""
    if bill is None or bill.per_million_tokens is None:
        return
    summary = bill.summary()
    draft.metrics |= {name: summary[name] for name in ("dollars", "on_demand_dollars", "dollars_per_million_tokens")}
    draft.headline += f", ${bill.dollars:,.2f} (${bill.per_million_tokens:,.2f} per million tokens)"


def _dataset(config: GenerateConfig, work: str, column: str, missing: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """The missing batches through a pool of engines, one block each; yields what is known of each as it is written."""
    engines, cpus, gpus = _room(config)
    at_once = 1 + -(-2 * config.engine.max_sequences // config.batch_size)  # batches per engine: enough to keep it full
    items = [{"first": first, "last": last} for first, last in missing]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        BatchEngine,
        fn_constructor_args=(config, work, column, max(1, int(cpus))),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=min(engines, len(items)), max_tasks_in_flight_per_actor=at_once, max_concurrent_calls_per_actor=at_once
        ),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    with _quiet_bars():
        yield from dataset.iter_rows()


@contextmanager
def _quiet_bars() -> Iterator[None]:
    """Ray Data counts blocks; our bar counts rows."""
    context = ray.data.DataContext.get_current()
    before, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield
    finally:
        context.enable_progress_bars = before


def _room(config: GenerateConfig) -> tuple[int, float, float]:
    """(engines at most, CPUs of each, GPUs of each) on the attached cluster."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    num_gpus = int(ray.cluster_resources().get("GPU", 0)) if config.engine.device != "cpu" else 0
    if num_gpus:
        return config.concurrency or num_gpus, config.cpus_per_engine or 1, 1
    smallest = min((machine["CPU"] for machine in machines), default=1)
    cpus = config.cpus_per_engine or max(1, min(int(smallest) // 2, _MOST_CPUS))
    return config.concurrency or max(1, sum(int(machine["CPU"] // cpus) for machine in machines)), cpus, 0


def _parts(draft: Draft) -> dict[str, int]:
    """The parts of the output that are there, with their rows."""
    filesystem, path = resolve(draft.uri)
    names = [info.path for info in filesystem.get_file_info(arrow_fs.FileSelector(path)) if info.base_name.endswith(".parquet")]
    return {name: pq.read_metadata(name, filesystem=filesystem).num_rows for name in sorted(names)}


def _gathered(draft: Draft, staged: Staged) -> bool:
    return sum(_parts(draft).values()) == staged.num_rows


def _gather(draft: Draft, work: str, batches: list[tuple[int, int]], staged: Staged) -> None:
    """Join the batches, in the order of rows, into the output's parts, then drop the working state."""
    filesystem, _ = resolve(work)
    if not _gathered(draft, staged):
        waiting: list[pa.Table] = []
        for first, last in batches:
            waiting.append(pq.read_table(resolve(answers_uri(work, first))[1], filesystem=filesystem))
            if sum(map(len, waiting)) >= _PART_ROWS or last == staged.num_rows:
                joined = pa.concat_tables(waiting)
                write_table(joined, f"{draft.uri}/rows-{joined['row'][0].as_py():012d}.parquet")
                waiting = []
    if staged.unreadable:
        filesystem.create_dir(resolve(f"{draft.uri}/dropped")[1], recursive=True)
        lines = "".join(json.dumps(asdict(each)) + "\n" for each in staged.unreadable)
        with filesystem.open_output_stream(resolve(f"{draft.uri}/dropped/unreadable.jsonl")[1]) as stream:
            stream.write(lines.encode())
    assert _gathered(draft, staged), "every row is written exactly once"
    filesystem.delete_dir(resolve(work)[1])


def _fill(draft: Draft, staged: Staged, curve: list[tuple[float, int]], seconds: float) -> None:
    filesystem, _ = resolve(draft.uri)
    columns = ["usage", "finish_reason"]
    tables = [pq.read_table(name, filesystem=filesystem, columns=columns) for name in _parts(draft)]
    rows = pa.concat_tables(tables)
    lengths = np.array([usage["completion_tokens"] for usage in rows["usage"].to_pylist()])
    reasons = {each["values"]: each["counts"] for each in rows["finish_reason"].combine_chunks().value_counts().to_pylist()}
    errors, total = reasons.get("error", 0), int(lengths.sum())
    rate = curve[-1][1] / curve[-1][0] if len(curve) > 1 else 0.0
    draft.counts = {"rows": len(lengths), "tokens": total, "errors": errors, "unreadable": len(staged.unreadable), **reasons}
    draft.metrics = {"tokens_per_s": rate, "seconds_this_run": seconds, "tokens_this_run": curve[-1][1] if curve else 0}
    draft.headline = f"{len(lengths):,} rows, {total:,} tokens, {rate:,.0f} tokens/s, {errors:,} errors"
    if staged.unreadable:
        draft.headline += f", {len(staged.unreadable):,} lines set aside"
    draft.figures = {"lengths": _lengths_figure(lengths), "rate": _rate_figure(curve)}


def _lengths_figure(lengths: np.ndarray) -> figure.Figure:
    """A histogram with bins of whole numbers, at most 16."""
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // 16)
    starts = range(low, high + 1, width)
    counts = np.bincount((lengths - low) // width, minlength=len(starts))
    labels = [f"{start}" if width == 1 else f"{start}–{start + width - 1}" for start in starts]
    bars = {label: int(count) for label, count in zip(labels, counts, strict=True)}
    return figure.bars("Length of the answers in tokens", "rows", {"rows": bars}, ordered=True)


def _rate_figure(curve: list[tuple[float, int]]) -> figure.Figure:
    return figure.lines("Tokens generated", "seconds", "tokens", {"this run": ([t for t, _ in curve], [n for _, n in curve])})
