"""Binds the application: replicas on spot and on-demand nodes, gateways on nodes that stay, one HTTP address on the head.

Promise: `running(config)` yields a base URL that answers, and leaves nothing behind; `serve(config)` is the same for people,
until Ctrl-C or SIGTERM; `build(args)` gives the same application to `serve run serve.app:build model=DIR`. Mistakes (a folder
that is no model, a busy port, a model that does not load) are one `ValueError` line, the first two before anything starts.
Price: Ray Serve's start and one engine's loading, some seconds together.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import ray
import ray.serve
from ray.exceptions import ActorDiedError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions, RequestRouterConfig
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from cluster.console import say
from cluster.runtime import attached
from cluster.settings import parse
from cluster.storage import absolute
from serve.config import ServeConfig
from serve.folder import adapter_folder, model_folder
from serve.gateway import Ingress
from serve.limits.keys import read_keys
from serve.replica import EngineReplica
from serve.request_router import ChosenReplica
from serve.scaling.ground import MARKET_LABEL as MARKET
from serve.scaling.policy_settings import policy_settings
from serve.scaling.serve_policy import SpotPolicy
from serve.scaling.stopping import GRACE_S
from serve.telemetry.books import Books

__all__ = ["APP", "application", "build", "deployed", "free_port", "gateways_of", "quiet_ray", "running", "serve"]

APP = "sterna"
"""The application's name in Ray Serve."""
ROLE = "sterna.io/role"
GATEWAY_NODES: dict[str, Any] = {
    "label_selector": {MARKET: "!spot", ROLE: "gateway"},
    "fallback_strategy": [{"label_selector": {MARKET: "!spot"}}],
}
"""Where a gateway goes: to a node kept for gateways, else to any that stays (a laptop, a cluster without labels)."""
SELECTORS = {"spot": "!on-demand", "on_demand": "!spot"}
"""By deployment, the market of its nodes; a node without the label satisfies either, so that a laptop can run both."""
HEAD = "node:__internal_head__"
"""The resource by which Ray marks the head."""
_POLL_S = 0.1
_ANSWER_S = 10.0


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def build(args: dict[str, Any]) -> ray.serve.Application:
    """For `serve run serve.app:build model=DIR engine.dtype=bfloat16 …`: the settings of ServeConfig, dots for nested ones."""
    return application(parse(ServeConfig, nested(args), where="serve.app:build"))


def nested(args: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as tables: {"engine.dtype": "float64"} is {"engine": {"dtype": "float64"}}."""
    tables: dict[str, Any] = {}
    for key, value in args.items():
        *path, last = key.split(".")
        inner = tables
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return tables


def application(config: ServeConfig) -> ray.serve.Application:
    """The Serve application. ValueError if `config.model` is no model folder, or an adapter's no adapter's."""
    config = deployed(config)
    keys = read_keys(config.api_keys, os.environ, num_gateways=config.gateways) if config.api_keys else ()  # from here on digests only
    counts = {"spot": config.spot_replicas, "on_demand": config.on_demand_replicas}
    replicas = {name: _replicas(config, name, count) for name, count in counts.items() if count or config.autoscaling}
    gateway = ray.serve.deployment(Ingress).options(
        name="gateway",
        num_replicas=config.gateways,
        max_ongoing_requests=10_000,
        ray_actor_options={"num_cpus": 0, **GATEWAY_NODES},
        graceful_shutdown_timeout_s=config.grace_s,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config={"enable_access_log": False},
    )
    books = ray.serve.deployment(Books).options(
        name="books",
        max_ongoing_requests=100,
        ray_actor_options={"num_cpus": 0, "resources": {HEAD: 0.001}},
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config={"enable_access_log": False},
    )
    return gateway.bind(config, replicas, keys, books.bind(config.ledger and absolute(config.ledger), dict(config.node_prices)))


def deployed(config: ServeConfig) -> ServeConfig:
    """The settings as processes elsewhere need them: places made absolute, a name, and as many threads as a replica has cores.

    ValueError for what is not there, and for names that clash.
    """
    model_folder(config.model)
    for folder in config.engine.adapter_folders.values():
        adapter_folder(folder)
    name = config.name or Path(config.model).absolute().name
    if name in config.engine.adapter_folders:
        raise ValueError(f"engine.adapters: {name!r} is the model's own name; give the adapter another, or the model with --name")
    threads = config.engine.num_threads or max(1, int(config.cpus_per_replica))
    engine = replace(config.engine, num_threads=threads).with_folders(absolute)
    return replace(config, model=absolute(config.model), name=name, engine=engine)


def _replicas(config: ServeConfig, name: str, count: int) -> ray.serve.Application:
    resources = {"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica}
    deployment = ray.serve.deployment(EngineReplica).options(
        name=name,
        **_count(config, count),
        max_ongoing_requests=config.max_streams,
        ray_actor_options={**resources, "label_selector": {MARKET: SELECTORS[name]}},
        request_router_config=RequestRouterConfig(request_router_class=ChosenReplica),
        health_check_period_s=2,
        graceful_shutdown_timeout_s=GRACE_S,  # a stream cut off then goes on elsewhere
        graceful_shutdown_wait_loop_s=0.2,
        logging_config={"enable_access_log": False},
    )
    return deployment.bind(config.model, config.engine, config.frame_s, config.move_kv)


def _count(config: ServeConfig, count: int) -> dict[str, Any]:
    """A fixed number of replicas, or the policy that sets it; its own bounds are the policy's, and its waits are ours."""
    if not config.autoscaling:
        return {"num_replicas": count}
    policy = AutoscalingPolicy(policy_function=SpotPolicy, policy_kwargs={"settings": policy_settings(config)})
    most = max(1, count, 2 * config.autoscale.max_replicas)  # twice: replicas are kept in reserve, too
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=0, initial_replicas=count, max_replicas=most, upscale_delay_s=0, downscale_delay_s=0, policy=policy
        )
    }


@contextmanager
def running(config: ServeConfig) -> Iterator[str]:
    """The served model's base URL (…/v1), for the length of the block, on the attached Ray or one started here."""
    app = application(config)
    _refuse_busy_port(config)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    needed = int(config.cpus_per_replica * (config.spot_replicas + config.on_demand_replicas)) + 1
    with attached(num_cpus=None if config.autoscaling else max(needed, 2)):
        _refuse_elsewhere(ray.nodes(), ray.get_runtime_context().get_node_id())
        if ray.serve.status().proxies:
            raise ValueError(
                "Ray Serve already runs on this cluster; deploy beside it with `serve run serve.app:build model=…`, "
                "or stop it first with `serve shutdown`"
            )
        ray.serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=config.host, port=config.port))
        try:
            ray.serve.api._run(app, name=APP, route_prefix="/", _blocking=False)
            url = f"http://{'127.0.0.1' if config.host == '0.0.0.0' else config.host}:{config.port}"
            _wait_until_ready(url, config.start_s)
            yield f"{url}/v1"
        finally:
            with quiet_ray():  # of its controller's own end Ray says that it failed
                ray.serve.shutdown()


def gateways_of(app: str) -> DeploymentHandle[Any]:
    """A handle to an application's gateways, for a driver: it has no event loop that lasts, whatever the environment tells Serve."""
    handle: DeploymentHandle[Any] = ray.serve.get_app_handle(app)
    if not handle.is_initialized:  # Serve keeps its handles
        handle._init(_run_router_in_separate_loop=True)
    return handle


@contextmanager
def quiet_ray() -> Iterator[None]:
    """Keep Ray's reports of processes that die off the terminal, where their death is what was asked for."""
    said = ray._private.worker.print_to_stdstream
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        ray._private.worker.print_to_stdstream = said


def serve(config: ServeConfig) -> None:
    """Serve until interrupted (SIGINT or SIGTERM), then let running streams end; the address and an example go to stderr."""
    stop, now = threading.Event(), threading.Event()

    def interrupt(*_: object) -> None:
        (now if stop.is_set() else stop).set()

    with running(config) as url:
        for name in (signal.SIGINT, signal.SIGTERM):  # only now: Ray sets handlers of its own when it starts
            signal.signal(name, interrupt)
        model = config.name or Path(config.model).absolute().name
        say(f"{model} is served at {url} (Ctrl-C stops it), a live page at {url.removesuffix('v1')}; for example")
        example = json.dumps({"model": model, "prompt": "def add(", "max_tokens": 32})
        say(f"  curl {url}/completions -H 'content-type: application/json' -d '{example}'")
        stop.wait()
        _let_streams_end(config.grace_s, now)
    say("stopped")


def _let_streams_end(grace_s: float, now: threading.Event) -> None:
    """Let nobody in any more, and wait until every gateway's streams have ended, for `grace_s` at most, or until `now`.

    A gateway that has died has no streams, and the one that Serve starts in its place is told too; one that does not answer may have some.
    """
    gateways, deadline, told = gateways_of(APP), time.monotonic() + grace_s, False
    while time.monotonic() < deadline and not now.is_set():
        _, dumb = _asked(gateways, "close")
        counts, silent = _asked(gateways, "num_streams")
        if not (left := sum(counts)) and not dumb and not silent:
            return
        if not told:
            more = f" (gateways that do not answer: {silent or dumb})" * bool(silent or dumb)
            say(f"{left} streams go on to their end, for up to {grace_s:g} s{more}; nobody else is let in (Ctrl-C again ends them now)")
        told = True
        now.wait(_POLL_S)
    say(f"{sum(_asked(gateways, 'num_streams')[0])} streams were cut")


def _asked(gateways: DeploymentHandle[Any], method: str) -> tuple[list[int], int]:
    """What the living gateways answer, and how many did not in time."""
    try:
        found = gateways.broadcast(method).results(timeout_s=_ANSWER_S, return_exceptions=True)
    except DeploymentUnavailableError:  # all have died
        return [], 0
    except TimeoutError:
        return [], 1
    silent = [each for each in found if isinstance(each, Exception) and not isinstance(each, ActorDiedError)]
    return [each for each in found if isinstance(each, int)], len(silent)


def _refuse_busy_port(config: ServeConfig) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just given up is free
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ValueError(
                f"port {config.port} on {config.host}: cannot listen there ({error.strerror}); choose another with --port"
            ) from None


def _refuse_elsewhere(nodes: Sequence[Mapping[str, Any]], here: str) -> None:
    """ValueError if the node `here` is not on the head's machine, where the proxy listens: from elsewhere it may not be reachable."""
    places = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}
    head = next((node["NodeManagerAddress"] for node in nodes if HEAD in node["Resources"]), None)
    if head not in (None, places[here]):
        raise ValueError(
            f"serve: the address is on the cluster's head ({head}), and this is another machine ({places[here]}); "
            "run it on the head, or from anywhere with `ray job submit -- sterna serve …`"
        )


def _wait_until_ready(url: str, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while not (_deployed() and _healthy(url)):
        if time.monotonic() > deadline:
            raise ValueError(
                f"the model was not ready within {patience_s:g} s ({_what_is_missing()}); "
                "are there enough CPUs for the replicas, of the right market type?"
            )
        time.sleep(_POLL_S)  # Serve has no event for it


def _deployed() -> bool:
    """Whether every replica runs. ValueError with the reason if a replica cannot start."""
    app = ray.serve.status().applications.get(APP)
    if app is None:
        return False
    if app.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
        raise _why({name: deployment.message for name, deployment in app.deployments.items()}, app.message)
    return app.status == ApplicationStatus.RUNNING


def _why(messages: Mapping[str, str], summary: str) -> Exception:
    """A user's mistake that a replica found when it loaded the model is a ValueError here too."""
    text = "\n".join([*messages.values(), summary])
    mistakes: list[str] = re.findall(r"ValueError: (.+)", text)
    return ValueError(mistakes[-1]) if mistakes else RuntimeError(f"the model could not be served: {text}")


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2.0).status_code == 200
    except httpx.TransportError:  # not listening yet
        return False


def _what_is_missing() -> str:
    app = ray.serve.status().applications.get(APP)
    states = {} if app is None else {name: dict(deployment.replica_states) for name, deployment in app.deployments.items()}
    return ", ".join(f"{name}: {state}" for name, state in states.items()) or "nothing deployed"
