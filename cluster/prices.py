"""What machines cost on AWS: spot price history and on-demand prices, remembered on disk, and a table to fall back on.

Promise: every answer says where its prices come from and how old they are: AWS now, AWS at an earlier time (the cache), or the list prices
below with spot assumed at `ASSUMED_SPOT` of them; when AWS cannot be asked, one line says why. Price: two kinds of requests
(DescribeSpotPriceHistory in the region, GetProducts in us-east-1), at most once per `max_age_s`.
Source: AWS's EC2 and Price List Query APIs through boto3, which finds credentials and endpoints as every AWS tool does.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.console import say
from cluster.market import ON_DEMAND, SPOT, Pool
from cluster.price_book import ANY, Price, PriceBook, own_prices, pool_data, region_of
from cluster.settings import settings

__all__ = ["ASSUMED_SPOT", "LIST_PRICES", "PricesConfig", "Quotes", "ask_aws", "listed", "prices", "prices_of", "quotes"]

LIST_PRICES = {
    "m7i.xlarge": 0.2016, "m7i.2xlarge": 0.4032, "m7i.4xlarge": 0.8064, "c7i.large": 0.08925, "c7i.4xlarge": 0.714,
    "r7i.4xlarge": 1.0584, "g5.2xlarge": 1.212, "g6.2xlarge": 0.9776,
}  # fmt: skip
"""Dollars an hour on demand (Linux, us-west-2 and us-east-1, 2025) of the types in cluster.yaml: what is used where AWS was never asked."""
LISTED_ON = "2025"
ASSUMED_SPOT = 0.30
"""Share of the on-demand price that spot is assumed to cost where nothing is known: between the 0.1 and 0.5 that AWS's history shows."""
_AWS_TYPE = re.compile(r"[a-z][a-z0-9-]*\.[a-z0-9-]+")
_PRICING_REGION = "us-east-1"  # the Price List API answers for all regions, and is in few
_LINUX = ("Linux/UNIX", "Linux/UNIX (Amazon VPC)")


@settings
class PricesConfig:
    """`sterna cluster prices`: what machines cost now and have cost, spot by zone beside on demand."""

    types: tuple[str, ...] = ()
    """Instance types; by default those of the cluster file."""
    region: str = ""
    """AWS region; by default the cluster file's."""
    cluster: str = "cluster.yaml"
    """The cluster file (`ray up`) whose machines are meant."""
    hours: float = 24.0
    """How far back the spot price history goes; AWS keeps 90 days."""
    max_age_s: float = 3600.0
    """Prices that were asked for more recently than this are taken from the cache."""
    cache: str = "~/.cache/sterna/prices.json"
    """Where prices are remembered."""
    fresh: bool = False
    """Ask AWS or fail: no cache, no list prices."""

    def __post_init__(self) -> None:
        if not 0 < self.hours <= 90 * 24:
            raise ValueError(f"hours: is {self.hours:g}; AWS keeps 90 days, so use more than 0 and at most {90 * 24}")
        if not self.max_age_s >= 0:
            raise ValueError(f"max_age_s: is {self.max_age_s}; must not be negative")


@dataclass(frozen=True, slots=True)
class Quotes:
    """Prices, and where they come from."""

    book: PriceBook
    types: tuple[str, ...]
    region: str
    source: str
    """AWS, cache, or list."""
    as_of_s: float | None
    """When AWS said so, in unix seconds; None for list prices."""
    problem: str = ""
    """Why AWS was not asked now, if it was meant to be."""

    def summary(self) -> dict[str, Any]:
        """Rows of the table as plain data."""
        about = {"region": self.region, "source": self.source, "as_of_s": self.as_of_s, "problem": self.problem}
        return about | {"rows": [row for kind in self.types for row in self._rows(kind)]}

    def _rows(self, kind: str) -> Iterator[dict[str, Any]]:
        fixed = self.book.at(Pool(self.region, kind), ON_DEMAND, time.time())
        on_demand = fixed.per_hour if fixed else None
        for (pool, market), series in sorted(self.book.series.items()):
            if market == SPOT and pool.instance_type == kind:
                values, now = [price.per_hour for price in series], series[-1].per_hour
                share = now / on_demand if on_demand else None
                yield {"type": kind, "zone": pool.zone, "spot": now, "least": min(values), "most": max(values),
                       "changes": len(values) - 1, "on_demand": on_demand, "share": share}  # fmt: skip

    def __str__(self) -> str:
        head = f"{'type':<14} {'zone':<14} {'spot now':>9} {'least':>9} {'most':>9} {'on demand':>10} {'share':>6}"
        rows = [
            f"{row['type']:<14} {row['zone']:<14} {row['spot']:>9.4f} {row['least']:>9.4f} {row['most']:>9.4f} "
            f"{_number(row['on_demand'], 4):>10} {_number(row['share'], 2):>6}"
            for row in self.summary()["rows"]
        ]
        return "\n".join([head, *rows, "", self.provenance()])

    def provenance(self) -> str:
        """Where the prices come from and how old they are, in one line."""
        if self.as_of_s is None:
            return f"list prices of {LISTED_ON} (us-west-2), spot assumed at {ASSUMED_SPOT:.2f} of them" + (
                f"; {self.problem}" * bool(self.problem)
            )
        at = datetime.fromtimestamp(self.as_of_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
        return f"dollars per hour, from AWS at {at} ({_age(time.time() - self.as_of_s)})" + (f"; {self.problem}" * bool(self.problem))


def prices(config: PricesConfig) -> Quotes:
    """The prices that `config` asks for, from AWS, the cache, or the list.

    ValueError when no type or region is named, none of the types is known, or `fresh` is wanted and AWS cannot be asked.
    """
    types, region = config.types, config.region
    if not types or not region:
        named, place = _cluster(config.cluster)
        types, region = types or named, region or place
    return quotes(types, region, config)


def quotes(types: Sequence[str], region: str, config: PricesConfig) -> Quotes:
    """The prices of these types in a region."""
    kinds, cache = tuple(dict.fromkeys(types)), Path(config.cache).expanduser()
    kept = None if config.fresh else _kept(cache, kinds, region, config.hours)
    if kept and kept.as_of_s is not None and 0 <= time.time() - kept.as_of_s <= config.max_age_s:
        return kept
    try:
        found = ask_aws(kinds, region, config.hours)
    except ValueError as error:
        if config.fresh:
            raise
        if kept:
            return Quotes(kept.book, kinds, region, "cache", kept.as_of_s, str(error))
        return listed(kinds, region, str(error))
    _keep(cache, found, config.hours)
    return found


def listed(types: Sequence[str], region: str, problem: str = "") -> Quotes:
    """The list prices, and spot as assumed. ValueError when none of the types is in the list."""
    known = [kind for kind in types if kind in LIST_PRICES]
    if not known:
        raise ValueError(f"prices: {', '.join(types)}: not in the list of prices, and AWS was not asked{problem and f' ({problem})'}")
    made = [Price(Pool(region, kind), ON_DEMAND, LIST_PRICES[kind], source="list") for kind in known]
    made += [Price(Pool(region, kind), SPOT, LIST_PRICES[kind] * ASSUMED_SPOT, source="assumed") for kind in known]
    return Quotes(PriceBook.of(made), tuple(types), region, "list", None, problem)


def prices_of(pools: Collection[Pool], own: Mapping[str, float]) -> tuple[PriceBook, str]:
    """Prices of a cluster's machines, and where they come from: their owner's, else AWS's (or the list's) for types that AWS has."""
    if own:
        return PriceBook.of(own_prices(own)), "yours"
    book, said = PriceBook(), "none known for these machines"
    for region in sorted({region_of(pool.zone) for pool in pools if _AWS_TYPE.fullmatch(pool.instance_type)}):
        kinds = sorted({pool.instance_type for pool in pools if region_of(pool.zone) == region and _AWS_TYPE.fullmatch(pool.instance_type)})
        try:
            unasked = "AWS was not asked: the nodes have no label ray.io/availability-zone"
            found = listed(kinds, ANY, unasked) if region == ANY else quotes(kinds, region, PricesConfig())
        except ValueError as error:
            said = str(error)
        else:
            book, said = book.with_prices(found.book.prices()), found.provenance()
    return book, said


def ask_aws(types: Sequence[str], region: str, hours: float) -> Quotes:
    """Ask AWS. ValueError, in one line, when it cannot be asked or does not answer."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    patience = Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 3, "mode": "standard"})
    now = time.time()
    try:
        session = boto3.session.Session()
        spot = _spot(session.client("ec2", region_name=region, config=patience), types, now - hours * 3600)
        fixed = _on_demand(session.client("pricing", region_name=_PRICING_REGION, config=patience), types, region)
        return Quotes(PriceBook.of([*spot, *fixed]), tuple(types), region, "AWS", now)
    except (BotoCoreError, ClientError, ValueError) as error:
        raise ValueError(f"AWS was not asked for prices: {' '.join(str(error).split())}{_advice(error)}") from None


def _advice(error: Exception) -> str:
    kind = type(error).__name__
    if "Credentials" in kind or "Token" in kind:
        return "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role"
    if kind == "ClientError" and any(word in str(error) for word in ("Unauthorized", "AccessDenied", "not authorized")):
        return "; allow ec2:DescribeSpotPriceHistory and pricing:GetProducts"
    return ""


def _spot(client: Any, types: Sequence[str], since_s: float) -> list[Price]:
    """The history since a moment: each zone's price at that moment, and every change after it."""
    pages = client.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=list(types), ProductDescriptions=list(_LINUX), StartTime=datetime.fromtimestamp(since_s, UTC)
    )
    return [
        Price(Pool(each["AvailabilityZone"], each["InstanceType"]), SPOT, float(each["SpotPrice"]), each["Timestamp"].timestamp())
        for page in pages
        for each in page["SpotPriceHistory"]
    ]


def _on_demand(client: Any, types: Sequence[str], region: str) -> list[Price]:
    return [price for kind in types for price in _on_demand_of(client, kind, region)]


def _on_demand_of(client: Any, kind: str, region: str) -> Iterator[Price]:
    """Plain Linux on shared hardware, without a reservation: the one product that all the filters leave."""
    wanted = {"instanceType": kind, "regionCode": region, "operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA",
              "capacitystatus": "Used", "marketoption": "OnDemand"}  # fmt: skip
    filters = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in wanted.items()]
    pages = client.get_paginator("get_products").paginate(ServiceCode="AmazonEC2", FormatVersion="aws_v1", Filters=filters)
    for page in pages:
        for text in page["PriceList"]:
            for term in json.loads(text).get("terms", {}).get("OnDemand", {}).values():
                for dimension in term["priceDimensions"].values():
                    if dimension["unit"] == "Hrs" and float(dimension["pricePerUnit"].get("USD", 0)) > 0:
                        yield Price(Pool(region, kind), ON_DEMAND, float(dimension["pricePerUnit"]["USD"]))


def _cluster(path: str) -> tuple[tuple[str, ...], str]:
    """(instance types, region) of a cluster file."""
    import yaml

    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        kinds = [kind.get("node_config", {}).get("InstanceType") for kind in document["available_node_types"].values()]
        return tuple(dict.fromkeys(kind for kind in kinds if kind)), document["provider"]["region"]
    except OSError as error:
        raise ValueError(f"cluster: {path}: {error.strerror}; name the machines with --types and --region") from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise ValueError(f"cluster: {path}: names no types and region of AWS; name the machines with --types and --region") from None


def _keep(cache: Path, found: Quotes, hours: float) -> None:
    """Remember an answer beside those for other regions; a cache that cannot be written is said, and costs the next start a request."""
    answers = _read(cache)
    answers[found.region] = {
        "as_of_s": found.as_of_s,
        "hours": hours,
        "types": found.types,
        "prices": [{**asdict(p), "pool": pool_data(p.pool)} for p in found.book.prices()],
    }
    writing = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        writing.write_text(json.dumps(answers))
        writing.replace(cache)
    except OSError as error:
        say(f"prices: {cache}: not remembered ({error.strerror})")


def _kept(cache: Path, types: Sequence[str], region: str, hours: float) -> Quotes | None:
    """The remembered answer, if it holds these types and as much history."""
    answer = _read(cache).get(region)
    try:
        if answer is None or not set(types) <= set(answer["types"]) or answer["hours"] < hours:
            return None
        made = [Price(**{**price, "pool": Pool(**price["pool"])}) for price in answer["prices"]]
        book = PriceBook.of(price for price in made if price.pool.instance_type in types)
        return Quotes(book, tuple(types), region, "cache", float(answer["as_of_s"]))
    except (KeyError, TypeError, ValueError):
        return None  # written by another version: as good as none, and replaced by the next answer


def _read(cache: Path) -> dict[str, Any]:
    try:
        answers = json.loads(cache.read_text())
    except (OSError, ValueError):  # none yet, or cut off: as good as none
        return {}
    return answers if isinstance(answers, dict) else {}


def _number(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _age(seconds: float) -> str:
    for name, unit in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name} old"
    return "now"
