"""Does selection help? Two questions, with figures.

1. Resampling towards each domain of the Pile's sample in turn, a tenth of the documents chosen: how many times its share is raised.
2. The same small model on the same number of tokens of a pool of this machine's text and of samples from the web: its loss on
   held-out text of the target's kind (C4) and of the pool, for documents taken at random, filtered, selected and in an order.
Differences are taken within a seed; the interval is Student's, 95 %, over the seeds. Figures are kept after every run: run again and it
goes on; --fresh begins anew.

    python -m benchmarks.selection --quick             # one seed, some minutes
    python -m benchmarks.selection                     # three seeds, a quarter of an hour on two cores
    python -m benchmarks.selection --priors            # how much to smooth the target, on packages and on the Pile: three minutes
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.selection_domains import BUDGET, domains_table, priors_table, read_domains, read_packages
from cluster.artifact import open_artifact
from cluster.console import say
from pipelines.curate.config import CurateConfig

REFERENCE = "random"
_BLUE, _ORANGE = "#2a6f97", "#e07a5f"


def main() -> None:
    """Measure what is missing, print the tables, draw."""
    args = _arguments()
    if args.priors:
        samples = {"packages": read_packages(), "the Pile": read_domains(args.data / "docs/pile-domains.jsonl")}
        print(priors_text(priors_table(samples, args.splits)))
        return
    args.json.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() and not args.fresh else {}
    known = {"steps": args.steps, "batch": args.batch, "pool_bytes": args.pool_bytes, "splits": args.splits}
    if done.get("settings", known) != known:
        raise SystemExit(f"{args.json}: holds figures of other settings ({done['settings']}); give --fresh or another --json")
    done["settings"] = known
    if "domains" not in done:
        done["domains"] = domains_table(read_domains(args.data / "docs/pile-domains.jsonl"), args.splits)
        _save(args.json, done)
    print(domains_text(done["domains"]))
    if not args.domains_only:
        runs = done.setdefault("runs", [])
        corpus = _corpus(args, done)
        for result in _train_missing(args, corpus, runs):
            runs.append(result)
            _save(args.json, done)
            say(f"{result['way']}, seed {result['seed']}: target {result['target']:.4f}, pool {result['pool']:.4f} nats")
        done["training"] = training_table(runs)
        _save(args.json, done)
        print(training_text(done["training"]))
    if args.plot:
        _draw(args.plot, done)


def training_table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each way and held-out text the mean loss over the seeds, and the difference from random within seeds with its interval."""
    rows = []
    for way in dict.fromkeys(run["way"] for run in runs):
        for text in ("target", "pool"):
            loss = {run["seed"]: run[text] for run in runs if run["way"] == way}
            other = {run["seed"]: run[text] for run in runs if run["way"] == REFERENCE}
            gains = np.array([loss[seed] - other[seed] for seed in sorted(loss.keys() & other.keys())])
            half = _half_width(gains)
            low, high = float(gains.mean() - half), float(gains.mean() + half)
            verdict = "" if way == REFERENCE else "helps" if high < 0 else "hurts" if low > 0 else "no difference seen"
            figures = {"loss": float(np.mean(list(loss.values()))), "difference": float(gains.mean()), "low": low, "high": high}
            rows.append({"way": way, "text": text, "seeds": len(loss), **figures, "differences": gains.tolist(), "verdict": verdict})
    return rows


def _half_width(values: np.ndarray) -> float:
    """Of Student's 95 % interval for the mean; without bound for a single value."""
    if len(values) < 2:
        return float("inf")
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def domains_text(rows: list[dict[str, Any]]) -> str:
    """The table of part 1."""
    lines = [
        f"| domain | documents | target | share before | share after ({BUDGET:.0%} chosen) | raised | least of the splits |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['domain']} | {row['documents']} | {row['target_documents']:.0f} | {row['before']:.1%} | {row['after']:.1%} "
            f"| {row['raised']:.1f}x ({row['low']:.1f} to {row['high']:.1f}) | {row['least']:.1f}x |"
        )
    return "\n".join(lines)


def priors_text(rows: list[dict[str, Any]]) -> str:
    """The table of --priors: for each sample mean and least by smoothing."""
    priors = list(dict.fromkeys(row["prior"] for row in rows))
    lines = [f"| raised, mean (least) | {' | '.join(f'{prior:,}' for prior in priors)} |", f"|---{'|---' * len(priors)}|"]
    for sample in dict.fromkeys(row["sample"] for row in rows):
        cells = [f"{row['mean']:.1f}x ({row['least']:.1f}x)" for row in rows if row["sample"] == sample]
        lines.append(f"| {sample} | {' | '.join(cells)} |")
    return "\n".join(lines)


def training_text(rows: list[dict[str, Any]]) -> str:
    """The table of part 2."""
    lines = ["| documents | held-out text | seeds | nats per token | against random | |", "|---|---|---|---|---|---|"]
    for row in rows:
        against = "" if row["way"] == REFERENCE else f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
        lines.append(f"| {row['way']} | {row['text']} | {row['seeds']} | {row['loss']:.3f} | {against} | {row['verdict']} |")
    return "\n".join(lines)


def _train_missing(args: argparse.Namespace, corpus: Path, runs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    from benchmarks.selection_training import WAYS

    there = {(run["way"], run["seed"]) for run in runs}
    missing = [(way, seed) for seed, way in itertools.product(range(args.seeds), WAYS) if (way, seed) not in there]
    if not missing:
        return
    _pool(args.data, corpus)  # for the others to find
    settings = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn"), _quiet, (settings,)) as workers:
        jobs = [workers.submit(_train, args.data, corpus, way, seed, args.steps, args.batch) for way, seed in missing]
        yield from (job.result() for job in as_completed(jobs))


def _quiet(settings: dict[str, str]) -> None:
    os.environ.update(settings)


def _train(data: Path, corpus: Path, way: str, seed: int, steps: int, batch: int) -> dict[str, Any]:
    from benchmarks.selection_training import losses

    return {"way": way, "seed": seed, **losses(_pool(data, corpus), way, seed, steps, batch)}


@lru_cache(maxsize=1)
def _pool(data: Path, corpus: Path) -> Any:
    """Built once, by the first process that needs it."""
    from benchmarks.selection_training import VOCABULARY, build_pool

    file = corpus.parent / f"pool-{open_artifact(str(corpus), made_by='curate').digest[:12]}-{VOCABULARY}.pickle"
    if file.exists():
        return pickle.loads(file.read_bytes())
    samples = [data / name for name in ("docs/pile-domains.jsonl", "docs/quality-labels.jsonl", "text/wikitext2-valid.txt")]
    pool = build_pool(corpus, samples, data / "docs/c4-sample.jsonl")
    file.write_bytes(pickle.dumps(pool))
    return pool


def _corpus(args: argparse.Namespace, done: dict[str, Any]) -> Path:
    """This machine's text, without duplicates: nothing else is dropped from it. Later runs take the first one's."""
    from pipelines.curate.flow import curate

    folder: Path = args.json.with_suffix("") / "corpus"
    if not done["runs"]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        done["corpus"] = curate(CurateConfig(output=str(folder), max_bytes=args.pool_bytes, profile="none")).digest
    elif not folder.exists() or open_artifact(str(folder), made_by="curate").digest != done["corpus"]:
        raise SystemExit(f"{folder}: not the corpus that {args.json} has figures of; give --fresh or another --json")
    return folder


def _draw(file: Path, done: dict[str, Any]) -> None:
    """The two tables as one picture."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = [row for row in done.get("training", []) if row["way"] != REFERENCE]
    canvas, axes = plt.subplots(1, 1 + bool(rows), figsize=(6.5 + 6.5 * bool(rows), 4.4), layout="constrained", squeeze=False)
    _draw_domains(axes[0][0], done["domains"])
    if rows:
        _draw_training(axes[0][1], rows)
    canvas.savefig(file, dpi=150)
    plt.close(canvas)


def _draw_domains(axes: Any, domains: list[dict[str, Any]]) -> None:
    at = np.arange(len(domains))
    errors = [[r["raised"] - r["low"] for r in domains], [r["high"] - r["raised"] for r in domains]]
    axes.barh(at, [r["raised"] for r in domains], xerr=errors, color=_BLUE, ecolor="#14213d", height=0.7)
    axes.axvline(1, color="#9aa5b1", lw=1)
    axes.set_yticks(at, [f"{r['domain']} ({r['before']:.0%})" for r in domains])
    axes.invert_yaxis()
    axes.set_xlabel("times the share it had (95 % interval)")
    axes.set_title("A tenth of the Pile's sample, chosen towards a domain", fontsize=11)


def _draw_training(axes: Any, rows: list[dict[str, Any]]) -> None:
    ways = list(dict.fromkeys(row["way"] for row in rows))
    for offset, (text, colour) in enumerate((("target", _BLUE), ("pool", _ORANGE))):
        own = [row for row in rows if row["text"] == text]
        at = np.arange(len(ways)) + 0.28 * (offset - 0.5)
        half = [row["high"] - row["difference"] if row["seeds"] > 1 else 0.0 for row in own]
        axes.errorbar([row["difference"] for row in own], at, xerr=half, fmt="D", ms=5, capsize=3, color=colour, label=text)
        for place, row in zip(at, own, strict=True):
            axes.plot(row["differences"], [place] * len(row["differences"]), "o", ms=3, color="#14213d", alpha=0.6, zorder=3)
    axes.axvline(0, color="#9aa5b1", lw=1)
    axes.set_yticks(np.arange(len(ways)), ways)
    axes.invert_yaxis()
    axes.set_xlabel("held-out loss against random, nats per token: left is better")
    axes.set_title("The same small model on as many tokens (dots: seeds)", fontsize=11)
    axes.legend(title="held-out text", loc="best")


def _save(file: Path, done: dict[str, Any]) -> None:
    scratch = file.with_suffix(".partial")
    scratch.write_text(json.dumps(done, indent=1))
    scratch.replace(file)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    beside = Path(__file__).resolve().parents[2] / "shared/data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("STERNA_DATA", beside)), help="folder with docs/ and text/")
    parser.add_argument("--json", type=Path, default=Path("runs/selection.json"), help="where figures are kept")
    parser.add_argument("--plot", type=Path, help="write a picture, such as selection.png")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=4, help="sequences of 256 tokens in a step")
    parser.add_argument("--splits", type=int, default=10, help="of the documents of part 1 into halves")
    parser.add_argument("--pool-bytes", type=int, default=16_000_000, help="of this machine's text")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--domains-only", action="store_true", help="part 1 only: seconds")
    parser.add_argument("--priors", action="store_true", help="compare smoothings of the target instead")
    parser.add_argument("--quick", action="store_true", help="one seed and half the steps")
    parser.add_argument("--fresh", action="store_true", help="forget earlier figures")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.steps = 1, args.steps // 2
    return args


if __name__ == "__main__":
    main()
