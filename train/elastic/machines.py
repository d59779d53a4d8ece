"""The machines of the cluster as training sees them: who is there, who is about to go, who has gone without a word.

Promise: a machine that drains or has been given notice is seen within a fifth of a second (announcements: a second); one whose Ray
daemon does not answer counts as leaving, though Ray itself takes seconds to say so. Price: a call to the GCS a look.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import ray

from cluster.preemption import DrainWatch
from train.elastic.size import Machine

__all__ = ["machines", "silent"]

_ANSWER_S = 1.0


def machines(watch: DrainWatch, gone: Iterable[str] = ()) -> list[Machine]:
    """The living machines; those in `gone` (node ids) are leaving, whatever Ray says."""
    leaving = {*watch.nodes, *watch.announced, *gone}
    return [
        Machine(node["NodeID"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0), node["NodeID"] in leaving)
        for node in ray.nodes()
        if node["Alive"]
    ]


def silent(node_ids: Iterable[str]) -> frozenset[str]:
    """Those of the nodes that Ray calls dead, or whose daemon does not answer within a second."""
    known = {node["NodeID"]: node for node in ray.nodes()}
    asked = [node for node_id in node_ids if (node := known.get(node_id))]
    if not asked:
        return frozenset()
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda n: n["Alive"] and _answers(n["NodeManagerAddress"], n["NodeManagerPort"]), asked))
    return frozenset(node["NodeID"] for node, answer in zip(asked, answers, strict=True) if not answer)


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_S):
            return True
    except OSError:
        return False
