"""What the drill counts, and how its machines vanish; the drill itself is in tests/chaos."""

import signal
import subprocess
import sys
from typing import Any

from pipelines.drill import Event, vanish


def stay(stream: str, node_id: str, end: str | None, first_s: float | None, last_s: float | None, how: str = "new") -> dict[str, Any]:
    return {
        "stream": stream,
        "node_id": node_id,
        "end": end,
        "first_s": first_s,
        "last_s": last_s,
        "how": how,
        "num_tokens": 0 if first_s is None else 5,
    }


def test_only_departures_from_the_victim_count() -> None:
    stays = [
        stay("a", "victim", "moved", 1.0, 2.0),
        stay("b", "other", "lost", 1.0, 2.0),
        stay("c", "victim", "lost", None, None),
        stay("a", "other", "lost", 2.5, 3.0, "kv"),
        stay("a", "third", "done", 7.0, 8.0, "crash"),
        stay("b", "third", "done", 9.0, 9.5),
        stay("c", "other", "done", 4.0, 5.0),
    ]
    event = Event("preempted", "spot-1", "victim", ["a"], [], stays, [], 0.0)
    assert (event.left("moved"), event.left("lost")) == (1, 0)
    assert event.arrivals == [stays[3]]
    assert event.ways == {"kv": 1}


def test_a_machine_vanishes_with_all_its_processes() -> None:
    child = "import time; print('begun', flush=True); time.sleep(3); print('still here', flush=True)"
    daemon = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    with subprocess.Popen([sys.executable, "-c", daemon], stdout=subprocess.PIPE, text=True) as machine:
        assert machine.stdout is not None
        assert machine.stdout.readline() == "begun\n"
        vanish(machine.pid)
        assert machine.stdout.read() == ""  # ends when both have let go of it
        assert machine.wait() == -signal.SIGKILL
