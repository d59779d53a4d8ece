"""The books: decisions in words, and looks at a cluster that become a bill."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.ledger_file import open_ledger
from cluster.prices import LIST_PRICES
from serve.telemetry import books as module
from serve.telemetry.books import Books, decision_rows


def node(name: str = "a", **more: Any) -> dict[str, Any]:
    plain = {"id": name, "address": "10.0.0.7", "labels": {}, "instance_type": "", "start_s": 0.0, "end_s": None, "head": False}
    return plain | more


SPOT_LABELS = {"ray.io/market-type": "spot", "ray.io/availability-zone": "us-west-2b", "sterna.io/instance-type": "m7i.4xlarge"}


def test_decisions_are_told_in_words_the_latest_first():
    notes = [
        {"decided_s": 1.0, "replicas": {"spot": 2, "on-demand": 1}, "give_back": [], "reasons": ("a",)},
        {"decided_s": 2.0, "replicas": {"spot": 3, "on-demand": 0}, "give_back": ["n1", "n2"], "reasons": ["b", "c"]},
    ]
    assert decision_rows(notes) == [
        {"at_s": 2.0, "what": "3 spot · 0 on demand · 2 given back", "reasons": ["b", "c"]},
        {"at_s": 1.0, "what": "2 spot · 1 on demand", "reasons": ["a"]},
    ]


class Cluster:
    """What the books look at, in a test's hands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes = [node("head", head=True), node("spot", labels={"ray.io/market-type": "spot"})]
        self.now_s, self.tokens = 10_000.0, 0
        monkeypatch.setattr(module, "node_table", lambda: self.nodes)
        monkeypatch.setattr(module, "decisions", lambda app: [])
        monkeypatch.setattr(module.time, "time", lambda: self.now_s)
        cluster = self

        class Kept(Books):
            async def _newly_served(self) -> int:
                new, cluster.tokens = cluster.tokens, 0
                return new

            _app = "app"

        self.books = Kept

    def look(self, books: Books, at_s: float, tokens: int = 0) -> None:
        self.now_s, self.tokens = at_s, tokens
        asyncio.run(books._look())


@pytest.fixture
def cluster(monkeypatch) -> Cluster:
    return Cluster(monkeypatch)


PRICES = {"spot": 0.3, "on-demand": 1.0}


def opened(cluster: Cluster, *arguments: Any) -> Books:
    async def make() -> Books:
        made = cluster.books(*arguments)
        made._task.cancel()
        return made

    return asyncio.run(make())


def test_an_hour_of_a_spot_and_an_on_demand_machine(cluster):
    books = opened(cluster, "", PRICES)
    cluster.look(books, 10_000)
    cluster.look(books, 13_600, 1_000_000)
    report = books.report()
    assert report["costs"]["dollars"] == pytest.approx(1.3), "from the first look on, however long they had been there"
    assert report["costs"]["on_demand_dollars"] == pytest.approx(2.0)
    assert report["costs"]["dollars_per_million_tokens"] == pytest.approx(1.3)
    assert report["costs"]["per_hour"] == pytest.approx(1.3)
    assert report["costs"]["prices"] == "yours"
    assert [(row["id"], row["price_per_hour"]) for row in report["machines"]] == [("head", 1.0), ("spot", 0.3)]


def test_between_ticks_the_bill_goes_on(cluster):
    books = opened(cluster, "", PRICES)
    cluster.look(books, 10_000)
    cluster.look(books, 10_005, 7)
    assert len(books._file.ledger.ticks) == 1, "a look alone is no entry"
    cluster.now_s = 10_036
    assert books.report()["costs"]["dollars"] == pytest.approx(1.3 * 36 / 3600)
    assert books.report()["costs"]["tokens"] == 7


def test_a_keeper_that_crashed_goes_on_and_one_that_was_stopped_begins_anew(cluster, tmp_path):
    path = str(tmp_path / "costs.jsonl")
    crashed = opened(cluster, path, PRICES)
    cluster.look(crashed, 10_000)
    cluster.look(crashed, 13_600, 5)
    crashed._file.close()  # and no word more
    again = opened(cluster, path, PRICES)
    cluster.look(again, 17_200, 6)
    assert again.report()["costs"]["dollars"] == pytest.approx(2.6), "they were there all along"
    again.__del__()
    cluster.now_s = 50_000
    later = opened(cluster, path, PRICES)
    cluster.look(later, 50_000)
    cluster.look(later, 53_600)
    assert later.report()["costs"]["dollars"] == pytest.approx(3.9), "while the service was down they were not its machines"
    assert later.report()["costs"]["tokens"] == 11
    later.__del__()
    written = (tmp_path / "costs.jsonl").read_text()
    later.__del__()  # Serve has called it, and so does Python
    assert (tmp_path / "costs.jsonl").read_text() == written
    assert open_ledger(path).bill().dollars == pytest.approx(3.9)


def test_a_machine_that_came_while_nobody_looked_counts_from_its_start(cluster, tmp_path):
    path = str(tmp_path / "costs.jsonl")
    crashed = opened(cluster, path, PRICES)
    cluster.look(crashed, 10_000)
    crashed._file.close()
    cluster.nodes.append(node("new", start_s=11_800.0))
    again = opened(cluster, path, PRICES)
    cluster.look(again, 13_600)
    assert again.report()["costs"]["dollars"] == pytest.approx(1.3 + 0.5)


def test_a_price_that_its_owner_changes_holds_from_then_on(cluster, tmp_path):
    path = str(tmp_path / "costs.jsonl")
    before = opened(cluster, path, PRICES)
    cluster.look(before, 10_000)
    before._file.close()
    cluster.now_s = 13_600
    after = opened(cluster, path, PRICES | {"spot": 0.5})
    cluster.look(after, 17_200)
    assert after.report()["costs"]["dollars"] == pytest.approx(1.3 + 1.5)
    assert (tmp_path / "costs.jsonl").read_text().count('"entry":"price"') == 3, "what did not change is no news"


def test_machines_of_aws_have_the_lists_prices_where_aws_cannot_be_asked(cluster):
    cluster.nodes = [node("a", labels={key: value for key, value in SPOT_LABELS.items() if "zone" not in key})]
    books = opened(cluster)
    cluster.look(books, 10_000)
    asyncio.run(books._ask_prices())
    cluster.look(books, 13_600)
    report = books.report()
    assert report["costs"]["on_demand_dollars"] == pytest.approx(LIST_PRICES["m7i.4xlarge"])
    assert "the nodes have no label" in report["costs"]["prices"]


def test_books_whose_ledger_was_refused_have_nothing_to_close(cluster, tmp_path):
    (tmp_path / "other").write_text("hello\n")
    with pytest.raises(ValueError, match="is no entry of a ledger"):
        opened(cluster, str(tmp_path / "other"))
    Books.__new__(Books).__del__()


def test_an_answer_that_is_lost_loses_no_token(cluster):
    books = opened(cluster)
    assert books._newly([("a", 9_000.0, 5), ("b", 9_000.0, 7)]) == 12
    assert books._newly([("a", 9_000.0, 6)]) == 1, "b was too late"
    assert books._newly([("a", 9_000.0, 6), ("b", 9_000.0, 9), ("c", 9_500.0, 4)]) == 2 + 4
    assert books._newly([]) == 0


def test_a_keeper_that_returns_counts_what_is_new_to_it(cluster, tmp_path):
    path = str(tmp_path / "costs.jsonl")
    crashed = opened(cluster, path)
    cluster.look(crashed, 10_000)
    crashed._file.close()
    again = opened(cluster, path)
    assert again._newly([("old", 9_000.0, 500), ("new", 10_001.0, 3)]) == 3, "the old one's were counted before"
    assert again._newly([("old", 9_000.0, 502), ("new", 10_001.0, 3)]) == 2


def test_a_machine_of_no_known_price_is_no_zero(cluster):
    books = opened(cluster)
    cluster.look(books, 10_000)
    cluster.look(books, 13_600)
    costs = books.report()["costs"]
    assert (costs["dollars"], costs["per_hour"], costs["unpriced_hours"]) == (None, None, pytest.approx(2.0))
