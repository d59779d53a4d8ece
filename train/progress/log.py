"""Where a run's readings go: metrics.jsonl beside the model, and the exporter that Ray runs on every node.

Promise: one line a step, in the order of the steps that count: when a run goes on from an earlier step, the lines of later ones are
dropped, and a roll-back leaves a line of its own. Price: a line is written as it comes to a local folder; to an object store, which has
no appending, the whole file every minute and at the end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pyarrow import fs as arrow_fs

from cluster.storage import resolve
from train.progress.meter import Reading
from train.state import Skip, State

__all__ = ["FILE", "MetricsLog", "ray_gauges"]

FILE = "metrics.jsonl"
_REMOTE_EVERY_S = 60.0
_HELP = {
    "step": "optimizer steps done",
    "loss": "nats per target token",
    "gradient_norm": "norm of the gradient before clipping",
    "learning_rate": "of the last step",
    "tokens_per_second": "target tokens a second over the last steps",
    "mfu": "model FLOP/s over what the devices could do",
    "memory_bytes": "peak memory of worker 0",
    "energy_joules": "used by worker 0's GPU or machine since the start",
    "seconds_left": "until the last step",
}


class MetricsLog:
    """The file of one run, in the hands of worker 0."""

    def __init__(self, folder: str, state: State) -> None:
        """`state` is where the run goes on; what the file says of later steps is void."""
        self._filesystem, path = resolve(f"{folder.rstrip('/')}/{FILE}")
        self._path = path
        self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        self._appends = isinstance(self._filesystem, arrow_fs.LocalFileSystem)
        self._lines = [line for line in self._read() if json.loads(line)["step"] <= state.step]
        self._write_all()

    def step(self, reading: Reading) -> None:
        """A step that counts."""
        self._add(asdict(reading))

    def undone(self, skip: Skip) -> None:
        """A roll-back: the lines of the steps that it undid go, its own comes."""
        self._lines = [line for line in self._lines if json.loads(line)["step"] <= skip.step]
        self._lines.append(json.dumps({"step": skip.step, "undone": asdict(skip)}))
        self._write_all()

    def close(self) -> None:
        """Write what is not yet written."""
        if not self._appends:
            self._write_all()

    def _add(self, line: dict[str, Any]) -> None:
        self._lines.append(json.dumps(line))
        if self._appends:
            with self._filesystem.open_append_stream(self._path) as stream:
                stream.write(self._lines[-1].encode() + b"\n")
        elif time.monotonic() - self._written_s >= _REMOTE_EVERY_S:
            self._write_all()

    def _read(self) -> list[str]:
        if self._filesystem.get_file_info(self._path).type != arrow_fs.FileType.File:
            return []
        with self._filesystem.open_input_stream(self._path) as stream:
            whole, _, _cut = stream.readall().decode().rpartition("\n")  # a line that was being written when the run was killed
        return whole.splitlines()

    def _write_all(self) -> None:
        self._written_s = time.monotonic()
        with self._filesystem.open_output_stream(self._path) as stream:
            stream.write("".join(line + "\n" for line in self._lines).encode())


def ray_gauges(run: str) -> Callable[[Reading], None]:
    """Tells Prometheus of each reading, as sterna_train_* with the label `run`, through the exporter of the node that the worker is on."""
    from ray.util.metrics import Gauge

    gauges = {name: Gauge(f"sterna_train_{name}", text, tag_keys=("run",)) for name, text in _HELP.items()}

    def tell(reading: Reading) -> None:
        for name, gauge in gauges.items():
            if (value := getattr(reading, name)) is not None:
                gauge.set(value, tags={"run": run})

    return tell
