"""The spot policies' settings as plain data, with what the cluster file says of the machines that may be rented.

Promise: everything the controller needs to decide, made once where the application is declared, so that the cluster file need not
be on any other machine; a mistake in that file is one ValueError line. Machines with GPUs are for replicas that use them, if there are
others. Prices are AWS's, as cluster/prices.py knows them, and `prices_now` looks again. A node type whose label says its zone is a pool of
that zone, at its price; Ray starts the others wherever there is room: pools of the region, at their dearest zone's price.
Price: one small file read, and a look at AWS's prices.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.machines import NodeType, node_types, zones
from cluster.market import Pool
from cluster.placement import fitted
from cluster.prices import PricesConfig, quotes
from cluster.settings import as_dict
from serve.config import ServeConfig

__all__ = ["PRICES_S", "policy_settings", "prices_now"]

PRICES_S = 300.0
"""How old prices may be: spot prices change every few hours, and a look costs two kinds of requests."""
ZONE_LABEL = "ray.io/availability-zone"


def policy_settings(config: ServeConfig) -> dict[str, Any]:
    """What serve.scaling.autoscaling takes: JSON-able, and equal for equal settings."""
    document = _read(config.cluster) if config.cluster else None
    kinds = () if document is None else node_types(document, where=config.cluster)
    fitting = [kind for kind in kinds if kind.replicas(cpus=config.cpus_per_replica, gpus=config.gpus_per_replica)]
    if document is not None and not fitting:
        raise ValueError(
            f"{config.cluster}: none of its node types holds a replica ({config.cpus_per_replica:g} CPUs, "
            f"{config.gpus_per_replica:g} GPUs); add one, or ask for less with cpus_per_replica or gpus_per_replica"
        )
    if not config.gpus_per_replica:
        fitting = [kind for kind in fitting if not kind.resources.get("GPU")] or fitting
    told: dict[str, Any] = {
        "types": [asdict(kind) for kind in fitting],
        "zone": "local" if document is None else _zone(document),
        "zones": {} if document is None else _zones(document, fitting),
        "region": "" if document is None else _region(document),
        "cpus": config.cpus_per_replica,
        "gpus": config.gpus_per_replica,
        "autoscale": as_dict(config.autoscale),
        "placement": as_dict(fitted(config.placement, utilization=config.autoscale.utilization, patience_s=config.max_wait_s)),
    }
    return told | {"prices": prices_now(told)}


def prices_now(told: Mapping[str, Any]) -> dict[str, float]:
    """Dollars per hour of each type's machine on its market, as far as AWS or the list of prices knows them; for what `policy_settings`
    made."""
    region, kinds = told["region"], [NodeType(**kind) for kind in told["types"]]
    if not region:
        return {}
    try:
        book = quotes([kind.instance_type for kind in kinds], region, PricesConfig(max_age_s=PRICES_S)).book
    except ValueError:  # none of these types is known anywhere: the ground guesses by their CPUs
        return {}
    found = {kind.name: book.at(Pool(told["zones"].get(kind.name, region), kind.instance_type), kind.market, time.time()) for kind in kinds}
    return {name: price.per_hour for name, price in found.items() if price is not None}


def _region(document: Mapping[str, Any]) -> str:
    """The region of AWS whose prices hold; empty elsewhere."""
    provider = document.get("provider", {})
    return str(provider.get("region", "")) if provider.get("type") == "aws" else ""


def _zone(document: Mapping[str, Any]) -> str:
    """The one zone in which machines are started, or the region where Ray chooses among several."""
    listed = zones(document)
    return listed[0] if len(listed) == 1 else str(document["provider"].get("region", "any"))


def _zones(document: Mapping[str, Any], kinds: Sequence[NodeType]) -> dict[str, str]:
    """Of node types that are in a zone of their own, as their label says."""
    labels = {kind.name: document["available_node_types"][kind.name].get("labels", {}) for kind in kinds}
    return {name: str(own[ZONE_LABEL]) for name, own in labels.items() if ZONE_LABEL in own}


def _read(path: str) -> dict[str, Any]:
    import yaml  # comes with Ray

    try:
        document = yaml.safe_load(Path(path).expanduser().read_text())
    except OSError as error:
        raise ValueError(f"cluster: {path} cannot be read ({error.strerror}); name the file you give to `ray up`") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"cluster: {path} is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(document, dict):
        raise ValueError(f"cluster: {path} is not a cluster file; name the file you give to `ray up`")
    return document
