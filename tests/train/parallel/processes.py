"""Two processes and a script: what a test of several workers needs when Ray has no part in it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def run_workers(script: str, folder: Path, *arguments: object, world_size: int = 2, timeout_s: float = 240) -> Any:
    """Run `script` in every process of a group; it gets `arguments` and then the file that worker 0 writes its result to as JSON."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    result = folder / "result.json"
    command = [sys.executable, "-c", script, *map(str, arguments), str(result)]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
    workers = []
    for rank in range(world_size):
        with (folder / f"{rank}.txt").open("w") as log:
            mine = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT)}
            workers.append(subprocess.Popen(command, cwd=ROOT, env=mine, stdout=log, stderr=log))
    codes = [worker.wait(timeout=timeout_s) for worker in workers]
    assert codes == [0] * world_size, "\n".join((folder / f"{rank}.txt").read_text()[-3000:] for rank in range(world_size))
    return json.loads(result.read_text())
