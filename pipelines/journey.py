"""The whole journey: text -> corpus -> tokens -> plan -> model -> tuned -> int8 -> judged, served, used, and drilled.

Promise: each stage is the verb's own function, reading the folder that the stage before it wrote; a rerun goes on where
it stopped, because a finished stage recognises itself. All settings are checked before the first stage starts.
Price: on two cores the configuration of configs/tiny.toml takes minutes and stays under 8 GiB (printed at the end).
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.artifact import Artifact, open_artifact
from cluster.console import say
from cluster.runtime import attached
from cluster.settings import parse
from pipelines.config import JourneyConfig
from pipelines.footprint import measured
from pipelines.report import render, write_page

__all__ = ["STEPS", "Arrival", "Step", "journey", "write_prompts"]


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of the journey and how it is wired to the folders before it."""

    stage: str
    """The stage's table in the configuration."""
    settings: str
    function: str
    output: str
    """Its folder, inside the journey's."""
    reads: dict[str, str | tuple[str, ...]]
    """Field of its settings -> folder(s) inside the journey's."""
    own_cluster: bool = False
    """Whether it starts a cluster of its own, so that ours must be gone."""


STEPS = (
    Step("curate", "pipelines.curate.config:CurateConfig", "pipelines.curate.flow:curate", "corpus", {}),
    Step("tokenize", "pipelines.config:TokenizeConfig", "pipelines.tokens:tokenize", "tokens", {"corpus": "corpus"}),
    Step("plan", "train.plan.config:PlanConfig", "train.plan.run:plan_run", "plan", {"tokens": "tokens"}),
    Step("pretrain", "train.config:PretrainConfig", "train.pretrain:pretrain", "base", {"plan": "plan", "tokens": "tokens"}),
    Step("tune", "train.tuning.config:TuneConfig", "train.tune:tune", "tuned", {"model": "base", "data": ("corpus",)}),
    Step("compress", "train.compress.config:CompressConfig", "train.compress.compress:compress", "int8",
         {"model": "tuned", "tokens": "tokens"}),
    Step("evaluate", "train.config:EvaluateConfig", "train.evaluate:evaluate", "evaluation",
         {"models": ("base", "tuned", "int8"), "data": ("tokens",)}),
    Step("trial", "pipelines.config:TrialConfig", "pipelines.trial:trial", "service", {"model": "int8", "prompts": "prompts.jsonl"}),
    Step("generate", "pipelines.config:GenerateConfig", "pipelines.generate:generate", "rows", {"model": "int8", "input": "prompts.jsonl"}),
    Step("drill", "pipelines.config:DrillConfig", "pipelines.drill:drill", "drill", {"model": "tuned"}, own_cluster=True),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Arrival:
    """What the journey shows at its end."""

    rows: tuple[tuple[str, str, str, str, str], ...]
    """(stage, input, output, time, headline) of each stage."""
    seconds: float
    peak_bytes: int
    page: str

    def summary(self) -> dict[str, Any]:
        """For --json."""
        stages = [dict(zip(("stage", "input", "output", "time", "headline"), row, strict=True)) for row in self.rows]
        return {"stages": stages, "seconds": round(self.seconds, 1), "peak_bytes": self.peak_bytes, "output": self.page}

    def __str__(self) -> str:
        table = [("stage", "input", "output", "time", "headline"), *self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in table]
        lines.insert(1, "  ".join("-" * width for width in [*widths, 8]))
        return "\n".join([*lines, "", *_footer(self.seconds, self.peak_bytes), f"report: {self.page}"])


def journey(config: JourneyConfig) -> Arrival:
    """Run every stage under `config.output` and draw the report; returns the table."""
    root, steps = Path(config.output), _until(config.until)
    planned = [(step, _configure(step, config, root)) for step in steps]
    unknown = set(config.stages) - {step.stage for step in STEPS} - {"report", "serve", "watch"}
    if unknown:
        raise ValueError(f"[{sorted(unknown)[0]}]: no such stage in the journey; stages: {', '.join(step.stage for step in STEPS)}")
    began, arrived = time.monotonic(), []
    with measured() as footprint:
        for step, result, seconds in _walk(planned, root, config.num_prompts):
            arrived.append((step, result, seconds))
    rows = tuple(_row(step, result, seconds, root) for step, result, seconds in arrived)
    elapsed = time.monotonic() - began
    page = root / "report.html"
    manifests = [(result.uri, result.manifest) for _, result, _ in arrived]
    write_page(page, render("Sterna: the journey", manifests, _footer(elapsed, footprint.peak_bytes)))
    return Arrival(rows, elapsed, footprint.peak_bytes, str(page))


def write_prompts(tokens: Path, path: Path, num_prompts: int) -> None:
    """Prompts cut from held-out documents (the first lines, up to 320 characters), every tenth one repeated."""
    documents = pq.read_table(tokens / "held_out.parquet", columns=["id", "text"]).sort_by("id")["text"].to_pylist()
    cut = [opening for text in documents if len(opening := _opening(text)) >= 40]
    if not cut:
        raise ValueError(f"{tokens}: no held-out document is long enough to cut a prompt from; curate more text or raise tokenize.held_out")
    prompts = [cut[(index // 10 if index % 10 == 9 else index) % len(cut)] for index in range(num_prompts)]
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    scratch.replace(path)


def _opening(text: str, at_most: int = 320) -> str:
    head = text[:at_most]
    return head[: head.rfind("\n") + 1] or head


def _until(stage: str) -> tuple[Step, ...]:
    names = [step.stage for step in STEPS]
    if stage and stage not in names:
        raise ValueError(f"until: no stage {stage!r}; stages: {', '.join(names)}")
    return STEPS[: names.index(stage) + 1] if stage else STEPS


def _configure(step: Step, config: JourneyConfig, root: Path) -> Any:
    module, _, name = step.settings.partition(":")
    wired = {field: _inside(root, folder) for field, folder in step.reads.items()}
    table = {**wired, **config.stages.get(step.stage, {}), "output": str(root / step.output)}
    return parse(getattr(importlib.import_module(module), name), table, where=f"[{step.stage}]")


def _inside(root: Path, folder: str | tuple[str, ...]) -> Any:
    return str(root / folder) if isinstance(folder, str) else tuple(str(root / name) for name in folder)


def _walk(planned: list[tuple[Step, Any]], root: Path, num_prompts: int) -> Iterator[tuple[Step, Artifact, float]]:
    ours = [pair for pair in planned if not pair[0].own_cluster]
    with attached():
        for step, settings in ours:
            if "prompts.jsonl" in step.reads.values() and not (root / "prompts.jsonl").exists():
                write_prompts(open_artifact(str(root / "tokens"), made_by="tokenize").local(), root / "prompts.jsonl", num_prompts)
            yield _take(step, settings)
    for step, settings in planned:
        if step.own_cluster:
            yield _take(step, settings)


def _take(step: Step, settings: Any) -> tuple[Step, Artifact, float]:
    say(f"\n== {step.stage}")
    module, _, name = step.function.partition(":")
    work: Callable[[Any], Artifact] = getattr(importlib.import_module(module), name)
    began = time.monotonic()
    result = work(settings)
    seconds = time.monotonic() - began
    say(f"{step.stage}: {result.manifest.headline} ({seconds:.1f} s)")
    return step, result, seconds


def _row(step: Step, result: Artifact, seconds: float, root: Path) -> tuple[str, str, str, str, str]:
    sources = [name for folder in step.reads.values() for name in ((folder,) if isinstance(folder, str) else folder)]
    again = result.manifest.seconds > seconds + 1.0
    took = f"{result.manifest.seconds:.1f} s" + (" (before)" if again else "")
    return step.stage, " + ".join(sources) or "this machine's Python", f"{root.name}/{step.output}", took, result.manifest.headline


def _footer(seconds: float, peak_bytes: int) -> list[str]:
    return [f"{seconds:.0f} s in all, peak memory {peak_bytes / 2**30:.2f} GiB (proportional set size of all processes)"]
