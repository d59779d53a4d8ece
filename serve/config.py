"""The settings of a served model.

Promise: frozen data with a reason for every default; what cannot work is refused here, before anything starts.
Price: none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import get_args

from cluster.autoscale import AutoscaleSettings
from cluster.placement import PlacementSettings
from cluster.price_book import own_prices
from cluster.settings import settings
from serve.engine.config import EngineConfig
from serve.moves.handover import MoveKv

__all__ = ["ServeConfig"]


@settings
class ServeConfig:
    """A model behind an OpenAI-compatible HTTP address, on machines that may vanish."""

    model: str
    """The model's folder (config.json, tokenizer, safetensors), at a path that every node can read or on s3://."""
    name: str | None = None
    """The name clients ask for; by default the folder's. Beside it they may name each of engine.adapters."""
    host: str = "127.0.0.1"
    """Address to listen on: this machine only unless told otherwise (0.0.0.0 listens to everyone)."""
    port: int = 8000
    """Port to listen on."""
    spot_replicas: int = 0
    """Engine replicas on spot nodes (Ray label ray.io/market-type=spot; a node without the label counts as either kind)."""
    on_demand_replicas: int = 1
    """Engine replicas on nodes that stay: a floor that serves on while spot nodes come and go."""
    autoscaling: bool = False
    """Whether the two counts follow the load and the spot market (they are then the counts to start with); without it they stay."""
    autoscale: AutoscaleSettings = AutoscaleSettings()
    """With autoscaling: how many replicas the load needs."""
    placement: PlacementSettings = PlacementSettings()
    """With autoscaling: how they are split between spot and on-demand machines."""
    cluster: str = ""
    """With autoscaling: a file for `ray up` whose node types Ray's autoscaler is asked for by name; without one Ray sees only that
    replicas have no room, and chooses the machines itself."""
    cpus_per_replica: float = 1.0
    """CPU cores set aside for a replica, and the engine's threads unless engine.num_threads says otherwise."""
    gpus_per_replica: float = 0.0
    """GPUs set aside for a replica; the engine uses one if it gets one."""
    engine: EngineConfig = EngineConfig()
    """How each replica runs the model."""
    max_streams: int = 256
    """Streams a replica takes at once; the engine runs max_sequences of them and the others wait their turn."""
    max_body_bytes: int = 4_000_000
    """Largest request body in bytes; a larger one is refused with status 413 before it is read to its end."""
    api_keys: str | None = None
    """Where the API keys are: a file, or env:NAME for an environment variable (serve/limits/keys.py says in which form). By default
    everyone who can reach the address may ask."""
    max_queue: int = 1024
    """Streams that may wait for their first token at a gateway; more are refused with status 429."""
    max_ttft_s: float | None = None
    """A request whose first token is expected later than this is refused with status 429 at once, so that those let in are served in time.
    By default it waits as long as it must: as one who sends a batch wants it."""
    max_request_s: float = 600.0
    """How long a request may take in all; then it ends with an error. As long as OpenAI's own clients wait by default."""
    max_wait_s: float = 120.0
    """How long a stream waits for a replica when there is none, as when every machine was taken at once."""
    frame_s: float = 0.05
    """A replica sends what it has at most this often per stream, the first token at once: fewer messages, for a delay nobody sees."""
    move_kv: MoveKv = "auto"
    """Whether a stream that leaves a machine with notice takes its KV along: where that pauses it for less than computing it again (auto),
    wherever it fits before the deadline (always), or never, as where traffic between zones costs more than prefill."""
    ledger: str = ""
    """A file (on the head's disk) in which the service keeps what its machines cost and what it served, so that a restart goes on with
    it; `sterna cluster ledger` reads it. By default costs count from the start of the service and are forgotten with it."""
    node_prices: Mapping[str, float] = field(default_factory=dict)
    """Dollars an hour of a machine, for `spot`, `on-demand` or an instance type, instead of AWS's prices."""
    gateways: int = 1
    """Gateway processes, on nodes that stay; each takes a share of the clients."""
    grace_s: float = 600.0
    """How long a gateway that is being replaced goes on with the streams it has: longer than the longest stream."""
    start_s: float = 300.0
    """How long a start may take before it is given up."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model: is empty; name the folder of a model")
        if not 0 < self.port < 65536:
            raise ValueError(f"port: {self.port} is not a port; use 1 to 65535")
        fewest = 0 if self.autoscaling else 1
        if self.spot_replicas < 0 or self.on_demand_replicas < 0 or self.spot_replicas + self.on_demand_replicas < fewest:
            raise ValueError("on_demand_replicas: there is no replica at all; ask for at least one, spot or on demand")
        own_prices(self.node_prices)  # ValueError for what is no price
        if "://" in self.ledger:
            raise ValueError(f"ledger: {self.ledger} is no file, and only a file can be appended to; name one on the head's disk")
        for name in ("max_streams", "gateways", "max_body_bytes", "max_queue"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is too few; use at least 1")
        if self.move_kv not in get_args(MoveKv):
            raise ValueError(f"move_kv: {self.move_kv!r} is unknown; use auto, always or never")
        for name in ("max_wait_s", "frame_s", "cpus_per_replica", "gpus_per_replica", "grace_s", "start_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative")
        for name in ("max_ttft_s", "max_request_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: {value} leaves no time; use some seconds")
