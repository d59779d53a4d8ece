"""datatrove's own pipeline as a worker, in an environment of its own: filters, then MinHash deduplication, by its local executor.

    python datatrove_curate.py INPUT OUTPUT TASKS WORKERS [--no-filters]

Its documented stages with its defaults: read and filter and write; signatures; buckets; clusters; remove and write. Prints one
JSON line: seconds of each stage, documents read and kept. Files are written without compression, which spares it some time.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def stages(source: str, output: str, *, filters: bool) -> list[tuple[str, list[Any], bool]]:
    """Name and pipeline of each stage, and whether it has one task only."""
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    rules = [
        GopherQualityFilter(),
        GopherRepetitionFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),  # drops documents by its rules and leaves lines that end without a stop
        FineWebQualityFilter(char_duplicates_ratio=0.1),
    ]
    read = f"{output}/filtered" if filters else source
    filtering = [("filters", [JsonlReader(source), *rules, JsonlWriter(read, compression=None)], False)]
    return (filtering if filters else []) + [
        ("signatures", [JsonlReader(read), MinhashDedupSignature(f"{output}/signatures", config=config)], False),
        ("buckets", [MinhashDedupBuckets(f"{output}/signatures", f"{output}/buckets", config=config)], False),
        ("clusters", [MinhashDedupCluster(f"{output}/buckets", f"{output}/remove", config=config)], True),
        ("write", [JsonlReader(read), MinhashDedupFilter(f"{output}/remove"), JsonlWriter(f"{output}/kept", compression=None)], False),
    ]


def count(folder: str) -> int:
    """Lines of the files in a folder."""
    return sum(sum(1 for _ in file.open("rb")) for file in sorted(Path(folder).glob("*.jsonl")))


def main() -> None:
    """Run the stages one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("tasks", type=int)
    parser.add_argument("workers", type=int)
    parser.add_argument("--no-filters", action="store_true")
    given = parser.parse_args()
    seconds = {}
    filtered = given.input if given.no_filters else f"{given.output}/filtered"
    for name, pipeline, alone in stages(given.input, given.output, filters=not given.no_filters):
        if name != "filters" and not count(filtered):
            break  # its reader takes a folder without files for a mistake
        tasks = 1 if alone else 14 if name == "buckets" else given.tasks
        started = time.monotonic()
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=given.workers, logging_dir=f"{given.output}/logs/{name}").run()
        seconds[name] = round(time.monotonic() - started, 2)
    told = {"seconds": seconds, "documents": count(given.input), "filtered": count(filtered), "kept": count(f"{given.output}/kept")}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
