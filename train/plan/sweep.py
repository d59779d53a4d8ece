"""`sterna plan sweep`: a ladder of small models on your own tokens, trained in a stated budget, and the law that their losses follow.

Promise: every run goes through the loop that trains large models, with batches and rates chosen as the plan chooses them; losses are
measured on sequences that none of them saw. Runs go side by side, one to a task of Ray's, wherever the cluster has room; what is finished
is kept, so an interrupted sweep goes on with the rest. `--verify` trains a model four times the largest and says how far the law is off.
Price: the budget. A machine that vanishes costs its run, minutes at most. Not Ray Train: a run is one process with one device, and a task
reuses a process that has imported torch already.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cluster.artifact import Artifact, Draft, finished, open_artifact, publish
from cluster.console import progress, say
from cluster.figure import table
from cluster.runtime import attached
from train.plan.config import Budget, FitConfig, SweepConfig
from train.plan.fit_run import Fits, LawReport, fitted_to, write_law
from train.plan.ladder import Rung, held_out_sequences, ladder, ladder_shapes, seconds_of, verifier
from train.plan.machine import Throughput
from train.plan.outlook import Data
from train.plan.runs import read_runs
from train.plan.text import data_of

__all__ = ["plan_sweep"]

_STAGE = "sweep"
_COLUMNS = ("parameters", "tokens", "loss", "training_loss", "embedding_parameters", "flops", "steps", "global_batch", "learning_rate")


def plan_sweep(config: SweepConfig) -> LawReport:
    """Train the ladder, fit, and write the law to `config.output` for `sterna plan run --law`.

    Raises ValueError where the tokens folder is not one, or budget or text are too little for a ladder.
    """
    tokens = open_artifact(config.tokens, made_by="tokenize")
    inputs = {"tokens": tokens.digest}
    if done := finished(config.output, stage=_STAGE, inputs=inputs, config=config):
        say(f"{config.output}: already done")
        return LawReport(json.loads((done.local() / "law.json").read_text(encoding="utf-8")) | {"output": config.output})
    data = data_of(tokens)
    with attached(), publish(config.output, stage=_STAGE, inputs=inputs, config=config) as draft:
        rungs, slots, threads = _planned(config, tokens, data, draft)
        rows = _train(rungs, tokens, data, slots, threads, draft)
        (draft.dir / "runs.csv").write_text(_csv(rows), encoding="utf-8")
        fit_config = FitConfig(
            runs=str(draft.dir / "runs.csv"), embeddings="included", resamples=config.resamples, seed=config.seed, output=config.output
        )
        made, told = fitted_to(fit_config, read_runs(fit_config.runs))
        told["rungs"] = rows
        if config.verify:
            told["verified"] = _verified(rungs, made, tokens, data, min(slots * threads, _cpus_of_a_machine()), draft)
        write_law(draft, made, told, "included")
        _describe(draft, told)
    return LawReport(told | {"output": config.output})


def _planned(config: SweepConfig, tokens: Artifact, data: Data, draft: Draft) -> tuple[list[Rung], int, int]:
    """(the runs, how many go side by side, threads of each): as they were planned when the sweep began."""
    import torch

    from train.optimize.arithmetic import use_bfloat16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    slots, threads = _room(3 * config.sizes)
    precision = "bfloat16" if use_bfloat16(config.precision, device) else "float32"
    kept = draft.dir / "rungs" / "throughput.json"
    rates = json.loads(kept.read_text()) if kept.exists() else _rates(config, tokens, data, precision, threads, device)
    throughput = _throughput(rates, data, config)
    rungs = ladder(
        data, Budget.parse(config.budget), throughput, slots=slots, sizes=config.sizes, precision=precision, seed=config.seed,
        architecture=config.architecture,
    )  # fmt: skip
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(rates))
    draft.scratch.append("rungs")
    sizes = sorted({rung.shape.num_parameters for rung in rungs})
    say(
        f"{len(rungs)} runs, {sizes[0] / 1e6:.2f} to {sizes[-1] / 1e6:.2f} M parameters on up to {rungs[0].positions / 1e6:.2f} M tokens, "
        f"{slots} at once: about {seconds_of(rungs, throughput, slots) / 60:.1f} minutes"
    )
    return rungs, slots, threads


def _room(most: int) -> tuple[int, int]:
    """(runs at once, threads of each) on the attached cluster."""
    import ray

    from cluster.runtime import num_cpus_available

    gpus, cpus = int(ray.cluster_resources().get("GPU", 0)), num_cpus_available()
    slots = min(most, gpus or cpus)
    return slots, 1 if gpus else max(1, min(cpus // slots, _cpus_of_a_machine()))


def _cpus_of_a_machine() -> int:
    """CPUs of the largest machine: no task gets more."""
    import ray

    return max([1, *(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])])


def _rates(config: SweepConfig, tokens: Artifact, data: Data, precision: Any, threads: int, device: Any) -> list[dict[str, float]]:
    """Two widths of small models, timed on this machine."""
    from train.corpus import Sequences
    from train.plan.measure import measure
    from train.plan.measure import threads as computing_with

    sequences, found = Sequences.open(tokens.local()), []
    ladders = ladder_shapes(data, config.sizes, config.architecture)
    with computing_with(threads):
        for shape in (ladders[0][0], ladders[2][-1]):
            sample = measure(shape, sequences, precision=precision, device=device)
            found.append({"flops_per_token": sample.flops_per_token, "seconds_per_token": sample.seconds_per_token})
    return found


def _throughput(rates: Sequence[Mapping[str, float]], data: Data, config: SweepConfig) -> Throughput:
    from train.plan.machine import Sample

    shape = ladder_shapes(data, config.sizes, config.architecture)[0][0]
    return Throughput(tuple(Sample(shape=shape, update_seconds=0.0, **rate) for rate in rates))


def _train(rungs: Sequence[Rung], tokens: Artifact, data: Data, slots: int, threads: int, draft: Draft) -> list[Mapping[str, Any]]:
    """The row of every run, in the rungs' order; those of an earlier start are taken as they are."""
    rows = {rung.name: row for rung in rungs if (row := _kept(draft, rung)) is not None}
    if rows:
        say(f"{len(rows)} of {len(rungs)} runs are there already")
    missing = [rung for rung in rungs if rung.name not in rows]
    with progress("sweep", sum(rung.flops for rung in missing), "FLOPs") as advance:
        for rung, row in _side_by_side(missing, tokens, held_out_sequences(data), slots, threads):
            rows[rung.name] = row
            _keep(draft, rung, row)
            advance(rung.flops)
            size, amount = row["parameters"] / 1e6, row["tokens"] / 1e6
            say(f"{size:.2f} M parameters, {amount:.2f} M tokens: loss {row['loss']:.4f} ({row['seconds']:.0f} s)")
    return [rows[rung.name] for rung in rungs]


def _side_by_side(
    rungs: Sequence[Rung], tokens: Artifact, num_held_out: int, slots: int, threads: int
) -> Iterator[tuple[Rung, Mapping[str, Any]]]:
    """Runs as they end, `slots` at a time, in the order given."""
    import ray

    from train.plan.rung import train_rung

    gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
    task: Callable[..., Any] = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=5)(train_rung).remote
    waiting, running = list(rungs), dict[Any, Rung]()
    while waiting or running:
        while waiting and len(running) < slots:
            rung = waiting.pop(0)
            running[task(rung, tokens, num_held_out, threads)] = rung
        (ready, *_), _ = ray.wait(list(running), num_returns=1)
        yield running.pop(ready), ray.get(ready)


def _kept(draft: Draft, rung: Rung) -> Mapping[str, Any] | None:
    """What an earlier start of this sweep wrote of the run, if it was the same run."""
    path = draft.dir / "rungs" / f"{rung.name}.json"
    row = json.loads(path.read_text()) if path.exists() else None
    same = row is not None and (row["parameters"], row["steps"], row["global_batch"]) == (
        rung.shape.num_parameters, rung.recipe.steps, rung.recipe.global_batch,
    )  # fmt: skip
    return row if same else None


def _keep(draft: Draft, rung: Rung, row: Mapping[str, Any]) -> None:
    path = draft.dir / "rungs" / f"{rung.name}.json"
    scratch = path.with_suffix(".partial")
    scratch.write_text(json.dumps(row))
    scratch.replace(path)


def _verified(rungs: Sequence[Rung], made: Fits, tokens: Artifact, data: Data, threads: int, draft: Draft) -> dict[str, Any]:
    """A model four times the largest, on the tokens of its largest: what the law said, and what came of it."""
    rung = verifier(rungs, data)
    say(f"verifying with {rung.shape.num_parameters / 1e6:.2f} M parameters")
    row = _kept(draft, rung) or next(_side_by_side([rung], tokens, held_out_sequences(data), 1, threads))[1]
    _keep(draft, rung, row)
    predicted = made.best.interval(row["parameters"], row["tokens"])
    off = predicted.value / row["loss"] - 1
    say(f"the law said {predicted.value:.4f} ({predicted.low:.4f} to {predicted.high:.4f}), measured {row['loss']:.4f}: {off:+.2%}")
    return {"predicted": predicted.table(), "error": off, "run": dict(row)}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _describe(draft: Draft, told: Mapping[str, Any]) -> None:
    rows = told["rungs"]
    draft.counts["runs"] = len(rows)
    draft.metrics["run_seconds"] = sum(row["seconds"] for row in rows)
    shown = [[f"{row['parameters']:,}", f"{row['tokens']:,}", f"{row['loss']:.4f}", f"{row['seconds']:.0f}"] for row in rows]
    draft.figures["runs"] = table("The ladder", ["parameters", "tokens", "loss", "seconds"], shown)
    if "verified" in told:
        draft.metrics["verified_error"] = told["verified"]["error"]
        draft.headline += f"; {100 * told['verified']['error']:+.2g} % off at four times the size"
