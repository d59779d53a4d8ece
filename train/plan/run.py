"""`sterna plan run`: tokens, a budget and a few seconds of measured throughput -> plan.toml.

Promise: what `sterna pretrain` will run as it is, with the predicted loss, time and memory, each with an interval, and what was measured
to predict them. Price: some seconds of training two probe models on this machine, which must be like the ones that will train.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from cluster.artifact import Artifact, Draft, finished, open_artifact, publish
from cluster.console import say
from cluster.figure import lines, table
from cluster.storage import absolute
from train.plan.budget import Candidate, Data, decide, probe_shapes
from train.plan.config import Budget, PlanConfig
from train.plan.laws import Interval
from train.plan.machine import Machine, Throughput

__all__ = ["plan_run"]

_STAGE = "plan"
_MEMORY_SHARE = 0.9  # of the machine's memory that its workers may use between them


def plan_run(config: PlanConfig) -> Artifact:
    """Choose shape, steps, batches and rates for the tokens and the budget, and write plan.toml to `config.output`.

    Raises ValueError when the tokens folder is not one, or when no model can be trained within budget and memory.
    """
    tokens = open_artifact(config.tokens, made_by="tokenize")
    inputs = {"tokens": tokens.digest}
    if done := finished(config.output, stage=_STAGE, inputs=inputs, config=config):
        say(f"{config.output}: already done")
        return done
    data, budget = _data(tokens), Budget.parse(config.budget)
    with publish(config.output, stage=_STAGE, inputs=inputs, config=config) as draft:
        machine = _machine(config, tokens.local(), data, budget)
        limits = {"max_parameters": config.max_parameters, "architecture": config.architecture}
        best, candidates = decide(data, budget, machine, seed=config.seed, **limits)
        (draft.dir / "plan.toml").write_text(tomli_w.dumps(_document(config, best, machine)), encoding="utf-8")
        _describe(draft, best, candidates, machine, data, budget)
    return open_artifact(config.output, made_by=_STAGE)


def _data(tokens: Artifact) -> Data:
    """The tokens folder's own account of itself; ValueError naming what its manifest lacks."""
    metrics = tokens.manifest.metrics
    try:
        return Data(
            num_sequences=int(metrics["num_sequences"]),
            sequence_length=int(metrics["sequence_length"]),
            vocab_size=int(metrics["vocab_size"]),
            bytes_per_token=float(metrics["bytes_per_token"]),
            zstd_bits_per_byte=_compressed_bits(tokens.local()),
            padding_share=float(metrics.get("padding_share", 0.0)),
        )
    except KeyError as error:
        raise ValueError(f"{tokens.uri}: its manifest has no {error.args[0]!r}; run `sterna tokenize` again") from None


def _compressed_bits(folder: Path) -> float:
    """Bits per byte of about a megabyte of the training text, spread over it, as zstd (level 19) shrinks it."""
    import numpy as np
    import zstandard
    from tokenizers import Tokenizer

    from train.corpus import Sequences

    sequences = Sequences.open(folder)
    count = min(len(sequences), max(1, 300_000 // sequences.sequence_length))
    ids = sequences.batch(np.linspace(0, len(sequences) - 1, count).astype(np.int64)).input_ids
    text = "\n".join(Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json")).decode_batch(ids.tolist())).encode()[:1_000_000]
    return 8 * len(zstandard.ZstdCompressor(level=19).compress(text)) / max(1, len(text))


def _machine(config: PlanConfig, folder: Path, data: Data, budget: Budget) -> Machine:
    """This machine as `config.num_workers` workers would share it, measured."""
    import torch

    from train.corpus import Sequences
    from train.optimize.arithmetic import use_bfloat16
    from train.plan.measure import measure, threads

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bfloat16" if use_bfloat16(config.precision, device) else "float32"
    sequences = Sequences.open(folder)
    samples = []
    with threads(_threads_per_worker(config.num_workers)):
        limits = {"max_parameters": config.max_parameters, "architecture": config.architecture}
        for shape in probe_shapes(data, budget, config.num_workers, **limits):
            samples.append(measure(shape, sequences, precision=precision, device=device))
            sample = samples[-1]
            say(f"measured {_millions(shape.num_parameters)} parameters: {1 / sample.seconds_per_token:,.0f} tokens/s a worker")
    return Machine(
        num_workers=config.num_workers,
        memory_bytes=config.memory_bytes or _memory_share(config.num_workers),
        precision=precision,
        throughput=Throughput(tuple(samples)),
    )


def _threads_per_worker(num_workers: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // num_workers)


def _memory_share(num_workers: int) -> int:
    from ray._common.utils import get_system_memory

    return int(get_system_memory() * _MEMORY_SHARE / num_workers)  # of the container, where there is one


def _document(config: PlanConfig, best: Candidate, machine: Machine) -> dict[str, Any]:
    exact = {"tokens": best.tokens, "flops": best.flops}
    predicted = {
        "loss": best.loss,
        "hours": Interval(*(seconds / 3600 for seconds in (best.seconds.value, best.seconds.low, best.seconds.high))),
        "bytes_per_device": best.bytes_per_device,
    } | {name: Interval(value, value, value) for name, value in exact.items()}
    recipe = asdict(best.recipe)
    return {
        "model": best.shape.table(),
        "train": {"tokens": absolute(config.tokens), **recipe},
        "predicted": {name: {k: float(f"{v:.6g}") for k, v in interval.table().items()} for name, interval in predicted.items()},
        "measured": {
            "processor": platform.processor() or platform.machine(),
            "threads_per_worker": _threads_per_worker(config.num_workers),
            "memory_bytes_per_worker": int(machine.memory_bytes),
            "samples": [
                {
                    "parameters": sample.shape.num_parameters,
                    "tokens_per_second": round(1 / sample.seconds_per_token, 1),
                    "flops_per_second": float(f"{sample.flops_per_second:.4g}"),
                    "update_seconds": round(sample.update_seconds, 5),
                }
                for sample in machine.throughput.samples
            ],
        },
    }


def _describe(draft: Draft, best: Candidate, candidates: list[Candidate], machine: Machine, data: Data, budget: Budget) -> None:
    recipe = best.recipe
    sizes = [candidate.shape.num_parameters for candidate in candidates]
    bounds = {"predicted": "value", "low": "low", "high": "high"}
    curves = {name: (sizes, [getattr(candidate.loss, bound) for candidate in candidates]) for name, bound in bounds.items()}
    draft.counts = {"candidates": len(candidates)}
    draft.metrics = {
        "parameters": best.shape.num_parameters,
        "predicted_loss": best.loss.table(),
        "predicted_seconds": best.seconds.table(),
        "predicted_bytes_per_device": best.bytes_per_device.table(),
        "tokens": best.tokens,
        "epochs": best.epochs,
        "flops": best.flops,
    }
    draft.figures = {
        "loss_by_size": lines(f"Predicted loss by model size within {budget}", "parameters", "nats per token", curves, log_x=True),
        "terms": table("What was chosen, and why it fits", ["term", "value"], _terms(best, machine, data)),
    }
    size, step, loss = _millions(best.shape.num_parameters), recipe.global_batch * recipe.sequence_length, best.loss
    draft.headline = (
        f"{size} parameters, {recipe.steps:,} steps × {step:,} tokens, loss {loss.value:.1f} ({loss.low:.1f}–{loss.high:.1f}) predicted"
    )


def _terms(best: Candidate, machine: Machine, data: Data) -> list[list[Any]]:
    shape, recipe = best.shape, best.recipe
    per_token = shape.train_flops_per_token(recipe.sequence_length)
    rows: list[list[Any]] = [
        ["width × layers, heads (key-value)", f"{shape.hidden_size} × {shape.num_layers}, {shape.num_heads} ({shape.num_kv_heads})"],
        ["parameters, embeddings included", f"{shape.num_parameters:,}"],
        ["FLOPs per token of training", f"{per_token:.3g}"],
        ["one worker sustains", f"{machine.throughput.flops_per_second(per_token) / 1e9:.0f} GFLOP/s in {machine.precision}"],
        ["tokens, passes over the text", f"{best.tokens:,.0f}, {best.epochs:.2f}"],
        ["learning rate, warm-up", f"{recipe.learning_rate:g}, {recipe.warmup_steps} steps"],
        ["workers × micro-batch × accumulation", f"{recipe.num_workers} × {recipe.micro_batch} × {recipe.micro_steps}"],
        ["wall time", f"{best.seconds.value:.0f} s ({best.seconds.low:.0f}–{best.seconds.high:.0f})"],
    ]
    rows += [["how far zstd shrinks the text", f"{data.zstd_bits_per_byte:.2f} bits per byte"]]
    rows += [[f"memory of a worker: {name}", f"{value / 2**20:,.0f} MiB"] for name, value in best.memory.terms().items()]
    return rows


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters < 1e9 else f"{parameters / 1e9:.2f} B"
