"""Curation beside datatrove on this machine's own text, and what becomes of time and memory as the input grows.

    python -m benchmarks.curate [--megabytes 110] [--parts speed dedup growth memory truth] [--json runs/curate.json]

The text is that of the installed packages (.py .md .rst .txt, the standard library's too), a document a file, cut to at most
200,000 characters, in jsonl files that both read. Our command runs as a user runs it, Ray's start included; datatrove with its
own local executor, as many workers as we have cores, and the same rules and parameters (Gopher, C4, FineWeb; 14 bands of 8 of
word 5-grams), from `make peers-curate`. Runs take turns: ours, theirs, ours.

Speed is documents a second by the wall clock of the whole command. The rules are for prose and most of this text is code, so that few
documents come to be compared: hence the same without rules (`dedup`), and both together (what is told of them: `together`). Growth is
the time of four times the input over four times the time, without Ray's start: by the clock, and summed over tasks. Memory is the
largest sum of the PSS of all processes of a run (plus what Ray spilled to disk), looked at ten times a second, with a `--task-bytes`
that the quarter fills, no room for signatures or edges on the driver, so that all goes through shuffles on storage, and an object
store of 80 MB, so that whatever goes through Ray's memory is spilled; beside it the working state on storage, and what a corpus of a
few documents takes. Truth: near_duplicates.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import xxhash

from benchmarks.near_duplicates import families, found, pairs, read_texts, records
from pipelines.curate.normalize import clean
from pipelines.curate.reading import read_files
from pipelines.curate.records import Fields
from pipelines.curate.sources import chunked, find_files

__all__ = ["Peak", "main", "write_text"]

PARTS = ("speed", "dedup", "growth", "memory", "truth")
PEER = Path(".venv-datatrove/bin/python")
_NUM_FILES = 16
_STORE_BYTES = 80 << 20
_MOST_CHARS = 200_000
_LEAST_CHARS = 200


def write_text(folder: Path, megabytes: int) -> dict[str, Any]:
    """Write documents of this machine's text to whole/, about `megabytes`, and every fourth of them to quarter/; how many, and their bytes.

    What is there already is left as it is.
    """
    if (folder / "told.json").exists():
        return dict(json.loads((folder / "told.json").read_text()))
    told = {name: {"documents": 0, "bytes": 0} for name in ("whole", "quarter")}
    for name in told:
        (folder / name).mkdir(parents=True, exist_ok=True)
    files = {name: [(folder / name / f"{number:02d}.jsonl").open("w") for number in range(_NUM_FILES)] for name in told}
    for number, text in enumerate(_texts()):
        line = json.dumps({"text": text, "id": str(number)}, ensure_ascii=False) + "\n"
        for name in told if number % 4 == 0 else ("whole",):
            files[name][told[name]["documents"] % _NUM_FILES].write(line)
            told[name]["documents"] += 1
            told[name]["bytes"] += len(line.encode())
        if told["whole"]["bytes"] >= megabytes * 1_000_000:
            break
    for each in files.values():
        for file in each:
            file.close()
    (folder / "told.json").write_text(json.dumps(told))
    return told


def _texts() -> Iterator[str]:
    """The documents in the order of a hash of their paths, so that any share of them is like the whole."""
    sources = sorted(find_files(()), key=lambda f: (xxhash.xxh3_64_intdigest(f.name.encode(errors="surrogateescape")), f.uri))
    for source in filter(lambda f: f.num_bytes, sources):
        for table in read_files(chunked([source], 1)[0], Fields()):
            for text in table["text"].drop_null().to_pylist():
                if len(text) >= _LEAST_CHARS:
                    yield clean(text[:_MOST_CHARS])


class Peak(threading.Thread):
    """The largest sum of PSS over a process and all below it, with what Ray has spilled; and of the files in `staged_in`; in bytes."""

    def __init__(self, process: int, spilled_in: Path, staged_in: Path | None = None) -> None:
        super().__init__(daemon=True)
        self._process, self._spilled_in, self._staged_in = psutil.Process(process), spilled_in, staged_in
        self._over = threading.Event()
        self.bytes = self.spilled = self.staged = 0

    def run(self) -> None:
        """Look until told to stop."""
        while not self._over.wait(0.1):
            total = 0
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for each in family:
                try:
                    total += each.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                    continue
            spilled = _stored(self._spilled_in, "**/ray_spilled_objects*/**/*")
            self.bytes, self.spilled = max(self.bytes, total + spilled), max(self.spilled, spilled)
            self.staged = max(self.staged, _stored(self._staged_in, "**/*") if self._staged_in else 0)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        if self.ident is not None:
            self.join()


def _stored(folder: Path, pattern: str) -> int:
    """Bytes of the files that match, some of which may go at any moment."""
    size = 0
    for file in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            size += file.stat().st_size if file.is_file() else 0
    return size


def ours(source: Path, output: Path, *options: str, profile: str = "web", watched: bool = False) -> dict[str, Any]:
    """`sterna curate` as a command: its wall time, what it says, and, where it is watched, the peak of its memory."""
    shutil.rmtree(output, ignore_errors=True)
    (output.parent / "ray").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "sterna", "curate", str(source), "--output", str(output), "--profile", profile, "--json", *options]
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_TMPDIR": str(output.parent / "ray")}
    environment |= {"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(_STORE_BYTES)} if watched else {}
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak = Peak(process.pid, output.parent / "ray", output.with_name(f"{output.name}.partial"))
    if watched:
        peak.start()
    told, _ = process.communicate()
    wall = time.monotonic() - started
    peak.stop()
    if process.returncode:
        raise SystemExit(f"benchmarks.curate: {' '.join(command)} failed")
    summary = json.loads(told.splitlines()[-1])
    return {"wall_s": round(wall, 2), "peak_bytes": peak.bytes, "spilled_bytes": peak.spilled, "staged_bytes": peak.staged, **summary}


def theirs(source: Path, output: Path, *options: str) -> dict[str, Any]:
    """datatrove's pipeline: its wall time and what it says."""
    shutil.rmtree(output, ignore_errors=True)
    worker = Path(__file__).parent / "workers" / "datatrove_curate.py"
    started = time.monotonic()
    command = [str(PEER), str(worker), str(source), str(output), str(_NUM_FILES), str(os.cpu_count()), *options]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"benchmarks.curate: datatrove failed: {ran.stderr.strip().splitlines()[-1]}")
    return {"wall_s": round(time.monotonic() - started, 2), **json.loads(ran.stdout.splitlines()[-1])}


def beside(text: Path, work: Path, *, filters: bool) -> dict[str, Any]:
    """Deduplication, after the filters or of everything: ours, theirs, ours."""
    if not PEER.exists():
        raise SystemExit("benchmarks.curate: no .venv-datatrove; run `make peers-curate`")
    profile, options = ("web", ()) if filters else ("none", ("--no-filters",))
    first = ours(text, work / "ours", profile=profile)
    runs = [first, theirs(text, work / "theirs", *options), ours(text, work / "ours", profile=profile)]
    documents = first["counts"]["documents_in"]
    assert documents == runs[1]["documents"], f"{documents} documents, and {runs[1]['documents']} of theirs"
    mean = (runs[0]["wall_s"] + runs[2]["wall_s"]) / 2
    return {
        "documents": documents,
        "ours_s": [runs[0]["wall_s"], runs[2]["wall_s"]],
        "datatrove_s": runs[1]["wall_s"],
        "ours_documents_per_s": round(documents / mean, 1),
        "datatrove_documents_per_s": round(documents / runs[1]["wall_s"], 1),
        "ratio": round(runs[1]["wall_s"] / mean, 2),
        "ours_start_s": round(runs[2]["wall_s"] - sum(runs[2]["metrics"]["seconds"].values()), 2),  # Python, its packages, Ray, and its end
        "ours_kept": first["counts"]["kept"],
        "datatrove_kept": runs[1]["kept"],
        "ours_seconds": {key: runs[2]["metrics"][key] for key in ("seconds", "task_seconds", "compare_seconds")},
        "datatrove_seconds": runs[1]["seconds"],
    }


def _together(speed: dict[str, Any], dedup: dict[str, Any]) -> dict[str, Any]:
    """Both parts one after the other: the rules on every document, and the comparison of every document."""
    own = sum(sum(part["ours_s"]) / 2 for part in (speed, dedup))
    other = speed["datatrove_s"] + dedup["datatrove_s"]
    return {"ours_s": round(own, 2), "datatrove_s": round(other, 2), "ratio": round(other / own, 2)}


def growth(quarter: Path, text: Path, work: Path) -> dict[str, Any]:
    """Seconds of a quarter and of everything, with the web rules and without any rules, and their ratios to linear growth."""
    found: dict[str, Any] = {}
    for profile in ("web", "none"):
        runs = {name: _spent(ours(source, work / "ours", profile=profile)) for name, source in (("quarter", quarter), ("whole", text))}
        scale = runs["whole"]["bytes"] / runs["quarter"]["bytes"]
        shares = {f"{key}_of_linear": round(runs["whole"][key] / runs["quarter"][key] / scale, 3) for key in ("seconds", "task_seconds")}
        found[profile] = {**runs, "times_the_input": round(scale, 2), **shares}
    return found


def _spent(told: dict[str, Any]) -> dict[str, float]:
    """Wall time of the command's work, and what its tasks took: the former holds the start of Ray's workers, the latter no idle time."""
    metrics = told["metrics"]
    tasks = sum(metrics["task_seconds"].values()) + sum(metrics["compare_seconds"].values()) + metrics["seconds"]["write"]
    return {"seconds": round(sum(metrics["seconds"].values()), 3), "task_seconds": round(tasks, 3), "bytes": metrics["bytes_in"]}


def memory(quarter: Path, text: Path, work: Path) -> dict[str, Any]:
    """Peaks of a few documents, of a quarter and of everything, by shuffles and within small bounds."""
    bounds = ("--task-bytes", str(8 << 20), "--driver-bytes", "1")
    with (quarter / "00.jsonl").open() as lines:
        (work / "few.jsonl").write_text("".join(islice(lines, 20)))
    peaks: dict[str, dict[str, Any]] = {}
    for name, source in (("few", work / "few.jsonl"), ("quarter", quarter), ("whole", text)):
        told = ours(source, work / "ours", *bounds, profile="none", watched=True)
        peaks[name] = {key: told[key] for key in ("peak_bytes", "spilled_bytes", "staged_bytes", "wall_s")}
        peaks[name] |= {key: told["metrics"][key] for key in ("bytes_in", "candidates", "edges", "rounds")}
    few, quarters, whole = (peaks[name]["peak_bytes"] for name in ("few", "quarter", "whole"))
    told = {"ratio": round(whole / quarters, 3), "ratio_above_few": round((whole - few) / (quarters - few), 3)}
    return {**peaks, "bounds": bounds, "object_store_bytes": _STORE_BYTES, **told}


def truth(work: Path) -> dict[str, Any]:
    """Recall and precision on near-duplicates of known similarity."""
    texts = read_texts(Path(os.environ.get("STERNA_DATA", "../shared/data")) / "docs")
    made = pairs(texts)
    rows = records(made, families(texts))
    (work / "truth.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    ours(work / "truth.jsonl", work / "truth", profile="none")
    return found(work / "truth", rows, made, 0.8)


def main() -> None:
    """Measure the parts that are asked for; figures of parts measured earlier stay in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=110)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, default=Path("runs/curate.json"))
    given = parser.parse_args()
    figures = json.loads(given.json.read_text()) if given.json.exists() else {}
    text = given.json.parent / f"curate-text-{given.megabytes}"
    figures["text"] = write_text(text, given.megabytes)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        measured = {
            "speed": lambda: beside(text / "whole", work, filters=True),
            "dedup": lambda: beside(text / "whole", work, filters=False),
            "growth": lambda: growth(text / "quarter", text / "whole", work),
            "memory": lambda: memory(text / "quarter", text / "whole", work),
            "truth": lambda: truth(work),
        }
        for part in given.parts:
            figures[part] = measured[part]()
            if {"speed", "dedup"} <= figures.keys():
                figures["together"] = _together(figures["speed"], figures["dedup"])
            print(f"{part}: {json.dumps(figures[part], indent=1)}", flush=True)
            given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
