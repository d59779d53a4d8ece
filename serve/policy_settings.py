"""The spot policies' settings as plain data, with what the cluster file says of the machines that may be rented.

Promise: everything the controller needs to decide, made once where the application is declared, so that the cluster file need not
be on any other machine; a mistake in that file is one ValueError line. Prices are AWS's, as cluster/prices.py knows them.
Price: one small file read, and at most one look at AWS's prices an hour.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.machines import NodeType, node_types, zones
from cluster.market import Pool
from cluster.prices import PricesConfig, quotes
from cluster.settings import as_dict
from serve.config import ServeConfig

__all__ = ["policy_settings"]


def policy_settings(config: ServeConfig) -> dict[str, Any]:
    """What serve.autoscaling takes: JSON-able, and equal for equal settings."""
    document = _read(config.cluster) if config.cluster else None
    kinds = () if document is None else node_types(document, where=config.cluster)
    fitting = [kind for kind in kinds if kind.replicas(cpus=config.cpus_per_replica, gpus=config.gpus_per_replica)]
    if document is not None and not fitting:
        raise ValueError(
            f"{config.cluster}: none of its node types holds a replica ({config.cpus_per_replica:g} CPUs, "
            f"{config.gpus_per_replica:g} GPUs); add one, or ask for less with cpus_per_replica or gpus_per_replica"
        )
    return {
        "types": [asdict(kind) for kind in fitting],
        "zone": "local" if document is None else zones(document)[0],
        "prices": {} if document is None else _prices(document, fitting),
        "cpus": config.cpus_per_replica,
        "gpus": config.gpus_per_replica,
        "autoscale": as_dict(config.autoscale),
        "placement": as_dict(config.placement),
    }


def _prices(document: Mapping[str, Any], kinds: Sequence[NodeType]) -> dict[str, float]:
    """Dollars per hour of each type's machine on its market, as far as AWS or the list of prices knows them."""
    provider = document.get("provider", {})
    if provider.get("type") != "aws":
        return {}
    region, now_s = str(provider.get("region", "")), time.time()
    try:
        book = quotes([kind.instance_type for kind in kinds], region, PricesConfig()).book
    except ValueError:  # none of these types is known anywhere: the ground guesses by their CPUs
        return {}
    found = {kind.name: book.at(Pool(region, kind.instance_type), kind.market, now_s) for kind in kinds}
    return {name: price.per_hour for name, price in found.items() if price is not None}


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
