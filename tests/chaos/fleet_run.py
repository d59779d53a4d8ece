"""The service on machines that come and go, on Ray's real autoscaler: run by test_fleet.py in a process of its own, prints one JSON line.

python tests/chaos/fleet_run.py MODEL FOLDER
"""

import faulthandler
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import ray
import ray.serve
import yaml

from cluster.census import Census, census
from cluster.notices import WatchConfig, watch
from cluster.rehearsal import Rehearsal, rehearsal, rehearsal_document
from cluster.settings import parse
from serve.app import APP, free_port, quiet_ray, running
from serve.config import ServeConfig
from serve.scaling.autoscaling import decisions

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("head", "gateway", "on_demand_cpu", "spot_cpu_m7i", "spot_cpu_c7i")
SPOT = ("spot_cpu_m7i", "spot_cpu_c7i")
NUM_CLIENTS, NUM_TOKENS, PATIENCE_S = 3, 200, 100.0
NOTICE_S, LEAD_S = 45.0, 5.0


def document() -> dict[str, Any]:
    """Our cluster file with fewer types, and no machine that is always there."""
    whole = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    kinds = {name: {**whole["available_node_types"][name], "min_workers": 0} for name in KINDS}
    return {**whole, "available_node_types": kinds}


@dataclass
class Clients:
    """Clients who ask the same again and again, and the texts they were told."""

    url: str
    texts: dict[int, set[str]] = field(default_factory=dict)
    num_streams: int = 0
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def begin(self) -> None:
        self.stop.clear()
        self.threads = [threading.Thread(target=self._loop, args=(index,)) for index in range(NUM_CLIENTS)]
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(PATIENCE_S)

    def _loop(self, index: int) -> None:
        while not self.stop.is_set():
            try:
                self.texts.setdefault(index, set()).add(self._ask(index))
                self.num_streams += 1
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                return

    def _ask(self, index: int) -> str:
        body = {"model": "tern", "prompt": f"def f{index}(", "max_tokens": NUM_TOKENS, "seed": index, "stream": True, "ignore_eos": True}
        text, done = "", False
        with httpx.stream("POST", f"{self.url}/completions", json=body, timeout=PATIENCE_S) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
                done = done or line == "data: [DONE]"
        if not done:
            raise RuntimeError("the stream ended early")
        return text


def machines(rehearsed: Rehearsal) -> Counter[str]:
    """Living machines by node type, the head left out."""
    return Counter(node.node_type for node in seen(rehearsed).nodes if node.node_type in KINDS)


def seen(rehearsed: Rehearsal) -> Census:
    return census(rehearsed.address)


def until(what: str, done: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not done():
        if time.monotonic() - began > PATIENCE_S:
            raise TimeoutError(f"{what}: not within {PATIENCE_S:g} s; {json.dumps(decisions(APP)[-3:])}")
        time.sleep(0.25)  # neither Serve nor the autoscaler has an event for it
    took_s = round(time.monotonic() - began, 1)
    print(f"{what}: {took_s} s", file=sys.stderr, flush=True)
    return took_s


def given_notice(rehearsed: Rehearsal, folder: Path) -> dict[str, float]:
    """The one spot machine is to be gone in `NOTICE_S`: it is replaced before it is drained."""
    until("one machine", lambda: machines(rehearsed).total() == 1)
    (going,) = (node.node_id for node in seen(rehearsed).nodes if node.node_type in SPOT)
    config = WatchConfig(cloud="file", file=str(folder / "notice"), node=going, address=rehearsed.address, interval_s=0.2, grace_s=0)
    watching = threading.Thread(target=watch, args=(config,), daemon=True)
    watching.start()
    (folder / "notice").write_text(json.dumps({"seconds": NOTICE_S}))
    gone_s = time.monotonic() + NOTICE_S

    def others() -> int:
        return sum(machines(rehearsed).values()) - 1

    took = {"replaced": until("a machine beside the one with notice", lambda: others() > 0)}
    assert [node.leaving for node in seen(rehearsed).nodes if node.node_id == going] == [True], "it does not drain yet"
    until("the drain", lambda: not any(node.leaving for node in seen(rehearsed).nodes))
    assert gone_s - time.monotonic() < LEAD_S + 3, "not before its time"
    watching.join(PATIENCE_S)
    while time.monotonic() < gone_s and any(node.node_id == going for node in seen(rehearsed).nodes):
        time.sleep(0.1)  # an empty node leaves by itself
    rehearsed.take(going)

    def settled() -> bool:
        there = machines(rehearsed)
        return there.total() == sum(there[kind] for kind in SPOT) == 1

    took["settled"] = until("one spot machine, and no other", settled)
    return took


def perform(rehearsed: Rehearsal, url: str, folder: Path) -> dict[str, Any]:
    clients, took = Clients(url), {}

    def spot() -> int:
        return sum(machines(rehearsed)[kind] for kind in SPOT)

    def fixed() -> int:
        return machines(rehearsed)["on_demand_cpu"]

    assert not machines(rehearsed), "nothing is paid for while nobody asks"
    clients.begin()
    took["launch"] = until("a spot machine for the load", lambda: spot() > 0)
    took["first answer"] = until("an answer", lambda: clients.num_streams > 0)
    took["on-demand gone"] = until("no machine on demand beside spot", lambda: fixed() == 0)
    rehearsed.run_dry(*SPOT)
    for node in seen(rehearsed).nodes:
        if node.node_type in SPOT:
            rehearsed.take(node.node_id)
    took["fallback"] = until("a machine on demand while spot is dry", lambda: fixed() > 0 and spot() == 0)
    before = clients.num_streams
    took["answer from it"] = until("an answer from it", lambda: clients.num_streams > before + NUM_CLIENTS)
    rehearsed.run_dry()
    took["spot again"] = until("a spot machine again", lambda: spot() > 0)
    took["retired"] = until("the machine on demand retires", lambda: fixed() == 0)
    took |= given_notice(rehearsed, folder)
    clients.end()
    took["to zero"] = until("all machines given back", lambda: not machines(rehearsed))
    clients.begin()
    before = clients.num_streams
    took["from zero"] = until("an answer, from nothing", lambda: clients.num_streams > before)
    clients.end()
    return {"took_s": took, "num_streams": clients.num_streams, "failures": clients.failures,
            "texts": {index: sorted(texts) for index, texts in clients.texts.items()}, "decisions": decisions(APP)}  # fmt: skip


def main(model: str, folder: str) -> None:
    faulthandler.dump_traceback_later(PATIENCE_S)  # where it hangs, if it does not even begin
    file = Path(folder) / "cluster.yaml"
    file.write_text(yaml.safe_dump(rehearsal_document(document())))
    config = parse(ServeConfig, {
        "model": model, "name": "tern", "port": free_port(), "spot_replicas": 0, "on_demand_replicas": 0, "cluster": str(file),
        "autoscaling": True, "engine": {"dtype": "float64", "num_threads": 1},
        "autoscale": {"replica_tokens_per_s": 1e6, "max_replicas": 1, "scale_down_after_s": 5.0},
        "placement": {"cold_start_s": 20.0, "retry_refused_s": 5.0, "drain_lead_s": LEAD_S},  # it takes some 13 s
    }, where="fleet")  # fmt: skip
    with quiet_ray(), rehearsal(document()) as rehearsed:
        ray.init(address=rehearsed.address, log_to_driver=False, logging_level="ERROR")
        with running(config) as url:
            faulthandler.cancel_dump_traceback_later()
            found = perform(rehearsed, url, Path(folder))
        ray.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
