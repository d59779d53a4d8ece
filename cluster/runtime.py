"""Attaching to Ray: the one place where a driver joins or starts a cluster, and where runtime environments are made.

Promise: the same verb runs on a laptop (starts Ray, stops it at the end), on a cluster (attaches: `RAY_ADDRESS`, or a
node of a running cluster) and inside `ray job submit` (attaches to the job's cluster). What is attached to is left as found.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from cluster.console import say

__all__ = ["ENVIRONMENT", "attached", "num_cpus_available"]

ENVIRONMENT = {
    # Ray Serve's hops for a third of the CPU: streams by gRPC, no thread between a request and its code. Read by every process of the
    # cluster, so cluster.yaml and deploy/rayservice.yaml set them, too.
    "RAY_SERVE_PROXY_USE_GRPC": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "1000000000",  # an answer in one piece, such as 2,048 embeddings; else no more than 4 MiB
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GRPC_VERBOSITY": "ERROR",
}


@contextmanager
def attached(*, num_cpus: int | None = None, **init: Any) -> Iterator[None]:
    """Be a driver of a Ray cluster for the length of the block.

    `num_cpus` is how many a cluster started here offers (default: this machine's); it is ignored when attaching.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, **init}
    if not _join(options):
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **options)
    try:
        with _leaving_when_told():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _leaving_when_told() -> Iterator[None]:
    """SIGTERM (`ray job stop`, a scheduler) leaves the block as Ctrl-C does; the handler that Ray sets as it starts aborts."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: a handler that is not Python's


def _join(options: dict[str, Any]) -> bool:
    """Attach to the cluster that RAY_ADDRESS names or that runs on this node; False when there is none ("local": none wanted)."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named == "local":
        return False
    if re.fullmatch(r"[^/]+:\d+", named) and not _answers(named):  # Ray itself would try for minutes
        raise ValueError(f"RAY_ADDRESS={named}: no Ray cluster answers there; start it, or unset RAY_ADDRESS")
    try:
        ray.init(address="auto", **options)
    except ConnectionError:
        return False
    say(f"attached to the Ray cluster at {ray.get_runtime_context().gcs_address}")
    return True


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10):
            return True
    except OSError:
        return False


def num_cpus_available() -> int:
    """CPUs of the attached cluster, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
