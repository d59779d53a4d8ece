"""Prices from AWS: against moto's EC2, and a stand-in with a history and a price list (moto has neither); from the cache, the list."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from cluster import prices as module
from cluster.market import ON_DEMAND, SPOT, Pool
from cluster.price_book import PriceBook
from cluster.prices import LIST_PRICES, PricesConfig, ask_aws, listed, prices, prices_of, quotes
from sterna import main

TYPE, REGION, ZONE = "m7i.4xlarge", "us-west-2", "us-west-2a"
WANTED = {
    "instanceType", "regionCode", "operatingSystem", "tenancy", "preInstalledSw", "capacitystatus", "marketoption",
}  # fmt: skip


def moment(seconds_ago: float) -> str:
    return datetime.fromtimestamp(time.time() - seconds_ago, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class Aws(http.server.ThreadingHTTPServer):
    """EC2's query protocol and the price list's JSON one: signed requests only, two answers a page."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.history = [
            (TYPE, ZONE, 0.40, 90000),
            (TYPE, ZONE, 0.30, 7200),
            (TYPE, "us-west-2b", 0.25, 9000),
            ("c7i.large", ZONE, 0.03, 60),
        ]
        self.on_demand = {TYPE: 0.8064, "c7i.large": 0.08925}
        self.refuse: tuple[int, str] | None = None
        self.asked: list[str] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Aws

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if not self.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256"):
            return self._answer(401, "<Response/>")
        if self.headers.get("X-Amz-Target") == "AWSPriceListService.GetProducts":
            return self._products(json.loads(body))
        return self._history(parse_qs(body))

    def _history(self, form: dict[str, list[str]]) -> None:
        assert form["Action"] == ["DescribeSpotPriceHistory"]
        self.server.asked.append("history")
        if self.server.refuse:
            status, code = self.server.refuse
            error = f"<Response><Errors><Error><Code>{code}</Code><Message>You may not.</Message></Error></Errors></Response>"
            return self._answer(status, error)
        kinds = {value[0] for key, value in form.items() if key.startswith("InstanceType.")}
        assert {value[0] for key, value in form.items() if key.startswith("ProductDescription.")} == {
            "Linux/UNIX",
            "Linux/UNIX (Amazon VPC)",
        }
        rows = [row for row in self.server.history if row[0] in kinds]
        first = int(form.get("NextToken", ["0"])[0])
        items = "".join(
            f"<item><instanceType>{kind}</instanceType><productDescription>Linux/UNIX</productDescription><spotPrice>{price}</spotPrice>"
            f"<timestamp>{moment(ago)}</timestamp><availabilityZone>{zone}</availabilityZone></item>"
            for kind, zone, price, ago in rows[first : first + 2]
        )
        token = str(first + 2) if first + 2 < len(rows) else ""
        name = "DescribeSpotPriceHistoryResponse"
        xml = f'<{name} xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><spotPriceHistorySet>{items}</spotPriceHistorySet>'
        return self._answer(200, f"{xml}<nextToken>{token}</nextToken></{name}>")

    def _products(self, asked: dict[str, Any]) -> None:
        self.server.asked.append("products")
        filters = {each["Field"]: each["Value"] for each in asked["Filters"]}
        assert asked["ServiceCode"] == "AmazonEC2"
        assert set(filters) == WANTED
        assert filters["regionCode"] == REGION
        rate = self.server.on_demand.get(filters["instanceType"])
        if "NextToken" not in asked:  # the first page is a reservation of capacity that costs nothing
            return self._answer(200, json.dumps({"PriceList": [product(0.0)], "NextToken": "2"}))
        return self._answer(200, json.dumps({"PriceList": [] if rate is None else [product(rate)]}))

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


def product(rate: float) -> str:
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": f"{rate:.10f}"}, "description": f"${rate} per On Demand Linux Instance Hour"}
    terms = {"OnDemand": {"SKU.JRTCKXETXF": {"priceDimensions": {"SKU.JRTCKXETXF.6YS6EN2CT7": dimension}}}}
    return json.dumps({"product": {"productFamily": "Compute Instance"}, "serviceCode": "AmazonEC2", "terms": terms})


@pytest.fixture
def keys(monkeypatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x" * 20)


@pytest.fixture
def aws(monkeypatch, keys) -> Iterator[Aws]:
    with Aws() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        yield server
        server.shutdown()


@pytest.fixture
def config(tmp_path) -> PricesConfig:
    return PricesConfig(types=(TYPE,), region=REGION, cache=str(tmp_path / "prices.json"))


@pytest.fixture
def no_keys(monkeypatch, tmp_path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


def test_history_and_on_demand_prices_come_page_by_page(aws, config):
    found = quotes([TYPE, "c7i.large"], REGION, config)
    assert found.source == "AWS"
    assert aws.asked == ["history", "history", "products", "products", "products", "products"]
    assert found.book.at(Pool(ZONE, TYPE), SPOT, time.time()).per_hour == 0.30
    assert found.book.at(Pool(ZONE, TYPE), SPOT, time.time() - 8000).per_hour == 0.40
    assert found.book.at(Pool(ZONE, TYPE), ON_DEMAND, time.time()).per_hour == 0.8064
    rows = found.summary()["rows"]
    assert [(row["type"], row["zone"], row["spot"], row["most"], row["changes"]) for row in rows] == [
        (TYPE, ZONE, 0.30, 0.40, 1),
        (TYPE, "us-west-2b", 0.25, 0.25, 0),
        ("c7i.large", ZONE, 0.03, 0.03, 0),
    ]
    assert rows[0]["share"] == pytest.approx(0.372, abs=1e-3)


def test_motos_ec2_is_understood(s3_environment):
    import boto3

    found = module._spot(boto3.client("ec2", region_name=REGION), [TYPE], time.time() - 3600)
    assert {price.pool.zone[:-1] for price in found} == {REGION}
    assert {(price.pool.instance_type, price.market, price.per_hour) for price in found} == {(TYPE, SPOT, 0.00001)}


def test_an_answer_is_remembered_with_its_age(aws, config):
    asked = quotes([TYPE], REGION, config)
    again = quotes([TYPE], REGION, config)
    assert (again.source, again.book, again.as_of_s) == ("cache", asked.book, asked.as_of_s)
    assert len(aws.asked) == 4
    quotes(["c7i.large"], REGION, config)
    assert len(aws.asked) > 4, "another type was not in the answer"
    quotes([TYPE], REGION, PricesConfig(cache=config.cache, hours=48))
    assert len(aws.asked) > 8, "nor was a longer history"


def test_an_old_answer_is_better_than_none_and_says_so(aws, config, monkeypatch):
    quotes([TYPE], REGION, config)
    kept = json.loads(Path(config.cache).read_text())
    kept[REGION]["as_of_s"] -= 3 * 86400
    Path(config.cache).write_text(json.dumps(kept))
    aws.refuse = (503, "Unavailable")
    found = quotes([TYPE], REGION, config)
    assert found.source == "cache"
    assert "3 days old" in found.provenance()
    assert "You may not." in found.provenance()
    aws.refuse = None
    assert quotes([TYPE], REGION, config).source == "AWS"


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"us-west-2": 3}', '{"us-west-2": {"types": ["m7i.4xlarge"], "hours": 24, "prices": [{}]}}']
)
def test_a_cache_that_is_none_is_replaced(aws, config, text):
    Path(config.cache).write_text(text)
    assert quotes([TYPE], REGION, config).source == "AWS"
    assert quotes([TYPE], REGION, config).source == "cache"


def test_a_cache_that_cannot_be_written_is_said(aws, config, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    found = quotes([TYPE], REGION, PricesConfig(cache=str(tmp_path / "file" / "prices.json")))
    assert found.source == "AWS"
    assert "not remembered" in capsys.readouterr().err


def test_without_credentials_the_list_stands_in(no_keys, config):
    found = prices(config)
    assert found.source == "list"
    assert found.book.at(Pool(ZONE, TYPE), ON_DEMAND, 0).per_hour == LIST_PRICES[TYPE]
    assert found.book.at(Pool(ZONE, TYPE), SPOT, 0).per_hour == pytest.approx(0.3 * LIST_PRICES[TYPE])
    assert "AWS was not asked for prices" in found.provenance()
    assert "set AWS_ACCESS_KEY_ID" in str(found).splitlines()[-1]


def test_asked_for_fresh_prices_without_credentials_it_is_one_line(no_keys, config, capsys):
    assert main(["cluster", "prices", TYPE, "--region", REGION, "--fresh"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "Unable to locate credentials; set AWS_ACCESS_KEY_ID" in lines[0]


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((403, "UnauthorizedOperation"), "allow ec2:DescribeSpotPriceHistory"),
        ((401, "AuthFailure"), "AuthFailure"),
        ((500, "X"), "You may not"),
    ],
)
def test_a_refusal_of_aws_is_one_line(aws, refusal, said):
    aws.refuse = refusal
    with pytest.raises(ValueError, match=said) as raised:
        ask_aws([TYPE], REGION, 1.0)
    assert "\n" not in str(raised.value)


def test_an_aws_that_is_not_there_is_one_line(monkeypatch, keys):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(ValueError, match="Could not connect"):
        ask_aws([TYPE], REGION, 1.0)


def test_a_type_that_nobody_knows_is_one_line(no_keys, config):
    with pytest.raises(ValueError, match=r"x9\.huge: not in the list of prices, and AWS was not asked"):
        quotes(["x9.huge"], REGION, config)


def test_the_cluster_file_says_which_machines_are_meant(no_keys, config):
    found = prices(PricesConfig(cache=config.cache))
    assert found.region == REGION
    assert set(found.types) == set(LIST_PRICES), "the list has every type of cluster.yaml"
    assert "g6.2xlarge" in str(found)


@pytest.mark.parametrize(
    ("settings", "said"), [({"cluster": "none.yaml"}, "No such file"), ({"hours": 0}, "90 days"), ({"max_age_s": -1}, "negative")]
)
def test_mistakes_are_one_line(settings, said):
    with pytest.raises(ValueError, match=said):
        prices(PricesConfig(**settings))


def test_a_file_that_is_no_cluster_is_one_line(tmp_path):
    for text in ("[", "3", "provider: 3", "available_node_types: {}"):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ValueError, match="names no types and region"):
            prices(PricesConfig(cluster=str(tmp_path / "c.yaml")))


def test_the_list_leaves_out_what_it_does_not_know():
    found = listed([TYPE, "x9.huge"], REGION)
    assert [row["type"] for row in found.summary()["rows"]] == [TYPE]


def test_the_verb_prints_a_table(aws, config, capsys):
    assert main(["cluster", "prices", TYPE, "--region", REGION, "--cache", config.cache]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [TYPE, ZONE, "0.3000", "0.3000", "0.4000", "0.8064", "0.37"]
    assert lines[-1].startswith("dollars per hour, from AWS at ")


def test_a_clusters_prices_are_its_owners_else_awss_else_none(aws, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    pools = {Pool(ZONE, TYPE), Pool("any", "any")}
    book, said = prices_of(pools, {"spot": 0.1})
    assert (book.at(Pool("any", "any"), SPOT, 0).per_hour, said) == (0.1, "yours")
    book, said = prices_of(pools, {})
    assert book.at(Pool(ZONE, TYPE), ON_DEMAND, time.time()).per_hour == 0.8064
    assert "from AWS at" in said
    assert prices_of({Pool("any", "any")}, {}) == (PriceBook(), "none known for these machines")
    book, said = prices_of({Pool("any", TYPE)}, {})
    assert book.at(Pool("any", TYPE), ON_DEMAND, 0).per_hour == LIST_PRICES[TYPE]
    assert "no label" in said
    assert "not in the list" in prices_of({Pool("any", "x9.huge")}, {})[1]
