"""What the judges of quality are worth and what they cost: ROC AUC on people's labels, megabytes a second on one core.

    python -m benchmarks.quality [--data FOLDER] [--json FILE]

The classifier is trained and judged by cross-validation on the labels (ten folds, three times); beside it stand what the
rules (no rule broken) and the perplexity under the Wikipedia sample say of the same documents. Speeds are of one process,
the best of three runs over the same sample documents; the archive in bytes of its records, all else in bytes of text.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.curate import classify, language, perplexity
from pipelines.curate.measure import measure_code, measure_prose
from pipelines.curate.normalize import clean
from pipelines.curate.quality import judge
from pipelines.curate.records import Fields
from pipelines.curate.web import read_warc


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [json.loads(line) for line in (options.data / "docs" / "quality-labels.jsonl").open()]
    texts, labels = [clean(row["text"]) for row in rows], [row["label"] for row in rows]
    reference = [clean((options.data / "docs" / "wiki-sample.txt").read_text())]
    found = {"documents": len(texts), "good": sum(labels), **worth(texts, labels, reference)}
    found["megabytes_per_second"] = speeds(texts, labels, reference, options.data)
    print(f"{len(texts)} labelled documents, {sum(labels)} good")
    for name in ("classifier", "rules", "perplexity"):
        area, error = found[name]
        print(f"ROC AUC, {name:<12}{area:.3f} ± {error:.3f}")
    for name, speed in found["megabytes_per_second"].items():
        print(f"{name:<20}{speed:>8.2f} MB/s on one core")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1))


def worth(texts: list[str], labels: list[int], reference: list[str]) -> dict[str, tuple[float, float]]:
    """ROC AUC and its standard error over documents, by judge."""
    _, area, error = classify.cross_validated(texts, labels, seed=0, repeats=3)
    passed = np.array([float(reason is None) for reason in judge(texts, "web")[0]])
    strange = perplexity.train(reference).perplexities(texts)
    return {
        "classifier": (area, error),
        "rules": classify.roc_auc(passed, labels),
        "perplexity": classify.roc_auc(-strange, labels),
    }


def speeds(texts: list[str], labels: list[int], reference: list[str], data: Path) -> dict[str, float]:
    """Megabytes a second of each step, by name."""
    trained, model = classify.train(texts, labels), perplexity.train(reference)
    num_bytes = sum(len(text.encode()) for text in texts)
    archive = data / "web" / "sample-0000.warc.gz"
    archive_bytes = len(gzip.decompress(archive.read_bytes()))
    steps: dict[str, tuple[Callable[[], Any], int]] = {
        "clean": (lambda: [clean(text) for text in texts], num_bytes),
        "web rules": (lambda: measure_prose(texts), num_bytes),
        "code rules": (lambda: measure_code(texts), num_bytes),
        "language": (lambda: language.identify(texts), num_bytes),
        "classifier": (lambda: trained.scores(texts), num_bytes),
        "perplexity": (lambda: model.perplexities(texts), num_bytes),
        "train perplexity": (lambda: perplexity.train(reference), len(reference[0].encode())),
        "pages of an archive": (lambda: list(read_warc(str(archive), Fields())), archive_bytes),
    }
    return {name: size / best_of(run) / 1e6 for name, (run, size) in steps.items()}


def best_of(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of three runs."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
