"""From a notice to a drained Ray node: over HTTP, from a file, through errors, and on a real cluster."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster import announcement, notices, preemption
from cluster.announcement import announced, listen
from cluster.notices import WatchConfig, watch
from cluster.settings import parse

ROOT = Path(__file__).resolve().parents[2]


class Board:
    """Stands in for the notes in the GCS."""

    def __init__(self) -> None:
        self.notes: dict[tuple[str, str], dict] = {}
        self.broken = False

    def post(self, topic: str, writer: str, note: dict) -> None:
        self.notes[topic, writer] = note

    def read(self, topic: str, *, max_age_s: float | None = None) -> dict[str, dict]:
        if self.broken:
            raise RuntimeError("GCS is away")
        return {writer: note for (about, writer), note in self.notes.items() if about == topic}

    def remove(self, topic: str, writer: str) -> None:
        del self.notes[topic, writer]


class Drains(list):
    """Stands in for Ray: records (node, reason, seconds left), and refuses while `broken`."""

    broken = False
    nodes: dict[str, str]
    board: Board

    def __call__(self, node: str, reason: str, deadline_s: float | None, *, gcs_address: str) -> None:
        if self.broken:
            raise RuntimeError("GCS is away")
        self.append((node, reason, deadline_s))


@pytest.fixture
def drains(monkeypatch) -> Drains:
    from ray.util import get_node_ip_address

    made = Drains()
    made.board = Board()
    monkeypatch.setattr(notices, "_bulletin", lambda _: made.board)
    made.nodes = {"a" * 56: get_node_ip_address(), "b" * 56: "10.9.8.7"}
    monkeypatch.setattr(preemption, "drain", made)
    monkeypatch.setattr(preemption, "node_addresses", lambda _: made.nodes)
    return made


class Running:
    """A watch in a thread of its own."""

    def __init__(self, **settings) -> None:
        self.stop = threading.Event()
        self.result: object = None
        config = WatchConfig(interval_s=0.02, address="127.0.0.1:1", **settings)
        self._thread = threading.Thread(target=lambda: setattr(self, "result", watch(config, self.stop)), daemon=True)
        self._thread.start()

    def join(self) -> object:
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.result

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(10)


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        threading.Event().wait(0.01)


def in_seconds(seconds: float) -> str:
    return time.strftime('{"action": "terminate", "time": "%Y-%m-%dT%H:%M:%SZ"}', time.gmtime(time.time() + seconds))


def test_an_aws_notice_drains_this_machines_node_only(service, drains):
    with Running(cloud="aws", metadata_url=service.url, grace_s=5) as running:
        until(lambda: service.ACTION in service.asked)
        assert drains == []
        service.paths[service.ACTION] = in_seconds(120)
        notice = running.join()
    ((node, reason, left_s),) = drains
    assert node == "a" * 56
    assert "terminate" in reason
    assert 112 < left_s <= 115, "120 s less the grace"
    assert notice.final


def test_a_recommendation_drains_without_a_deadline_and_the_deadline_follows(service, drains):
    with Running(cloud="aws", metadata_url=service.url) as running:
        service.paths[service.REBALANCE] = '{"noticeTime": "2026-11-22T08:22:00Z"}'
        until(lambda: drains)
        asked = len(service.asked)
        until(lambda: len(service.asked) > asked + 4)
        assert len(drains) == 1, "one drain per notice"
        service.paths[service.ACTION] = in_seconds(60)
        assert running.join().final
    assert [left_s is None for _, _, left_s in drains] == [True, False]


def test_where_somebody_listens_a_machine_is_announced_at_once_and_drained_late(service, drains):
    listen(drains.board, "policy", 1.0)
    service.paths[service.ACTION] = in_seconds(3)
    with Running(cloud="aws", metadata_url=service.url, grace_s=0) as running:
        until(lambda: announced(drains.board))
        assert drains == [], "until then it serves"
        assert set(announced(drains.board)) == {"a" * 56}
        assert running.join().final
    ((_, _, left_s),) = drains
    assert 0.5 < left_s <= 1.0, "the lead that was asked for"


def test_a_notice_that_is_shorter_than_the_lead_drains_at_once(service, drains):
    listen(drains.board, "policy", 30.0)
    service.paths[service.PREEMPTED] = "TRUE"
    with Running(cloud="gcp", metadata_url=service.url) as running:
        running.join()
    ((_, _, left_s),) = drains
    assert 25 < left_s <= 28
    assert not announced(drains.board)


def test_a_recommendation_has_no_deadline_to_wait_for_and_a_node_that_drains_hears_of_one_at_once(service, drains):
    listen(drains.board, "policy", 5.0)
    with Running(cloud="aws", metadata_url=service.url) as running:
        service.paths[service.REBALANCE] = '{"noticeTime": "2026-11-22T08:22:00Z"}'
        until(lambda: drains)
        service.paths[service.ACTION] = in_seconds(60)
        assert running.join().final
    assert [left_s is None for _, _, left_s in drains] == [True, False]
    assert drains[1][2] > 50


def test_a_notice_that_is_taken_back_in_time_is_announced_no_more_and_drains_nothing(service, drains, capsys):
    listen(drains.board, "policy", 5.0)
    service.schedule("Preempt", 60)
    with Running(cloud="azure", metadata_url=service.url):
        until(lambda: announced(drains.board))
        service.fail = True
        until(lambda: "trying again" in capsys.readouterr().err)
        assert announced(drains.board), "a service that fails takes nothing back"
        service.fail = False
        service.events.clear()
        service.incarnation += 1
        until(lambda: not announced(drains.board))
    assert drains == []


def test_a_listener_that_goes_leaves_nobody_to_wait_for(service, drains):
    listen(drains.board, "policy", 5.0)
    service.paths[service.ACTION] = in_seconds(60)
    with Running(cloud="aws", metadata_url=service.url) as running:
        until(lambda: announced(drains.board))
        drains.board.remove(announcement.LISTENERS, "policy")
        running.join()
    assert len(drains) == 1


def test_a_board_that_does_not_answer_delays_no_drain(service, drains, capsys):
    drains.board.broken = True
    service.paths[service.ACTION] = in_seconds(60)
    with Running(cloud="aws", metadata_url=service.url) as running:
        running.join()
    assert len(drains) == 1
    assert "the notice was not announced: GCS is away" in capsys.readouterr().err


def test_metadata_errors_are_said_once_and_survived(service, drains, capsys):
    service.fail = True
    with Running(cloud="aws", metadata_url=service.url) as running:
        until(lambda: len(service.asked) > 6)
        service.fail = False
        service.paths[service.ACTION] = "{not json"
        until(lambda: "not JSON" in capsys.readouterr().err)
        service.paths[service.ACTION] = in_seconds(60)
        running.join()
    assert len(drains) == 1


def test_a_repeated_error_is_one_line(service, drains, capsys):
    service.fail = True
    with Running(cloud="aws", metadata_url=service.url):
        until(lambda: len(service.asked) > 8)
    assert capsys.readouterr().err.count("503") == 1


def test_a_drain_that_ray_refuses_is_tried_again(service, drains):
    drains.broken = True
    service.paths[service.PREEMPTED] = "TRUE"
    with Running(cloud="gcp", metadata_url=service.url) as running:
        asked = len(service.asked)
        threading.Event().wait(0.1)
        assert drains == []
        assert asked <= 1
        drains.broken = False
        running.join()
    ((_, reason, left_s),) = drains
    assert "Google" in reason
    assert 25 < left_s <= 28


def test_auto_finds_the_cloud_that_answers(service, drains, capsys):
    service.aws = False
    service.paths[service.PREEMPTED] = "FALSE"
    with Running(cloud="auto", metadata_url=service.url):
        until(lambda: "watching GcpMetadata" in capsys.readouterr().err)


def test_auto_finds_azure(service, drains, capsys):
    service.aws = service.gcp = False
    service.schedule("Preempt", 30)
    with Running(cloud="auto", metadata_url=service.url) as running:
        assert running.join().final
    assert "watching AzureMetadata" in capsys.readouterr().err
    ((_, reason, left_s),) = drains
    assert "Preempt" in reason
    assert 25 < left_s <= 28


def test_azure_is_told_that_the_machine_may_go_once_ray_has_left_it(service, drains):
    identity = service.schedule("Preempt", 30)
    with Running(cloud="azure", metadata_url=service.url, acknowledge=True) as running:
        until(lambda: drains)
        assert service.started == []
        drains.nodes = {}
        running.join()
    assert service.started == [identity]


def test_azure_is_told_nothing_unless_that_is_wanted(service, drains):
    service.schedule("Preempt", 30)
    with Running(cloud="azure", metadata_url=service.url) as running:
        running.join()
    assert service.started == []


def test_a_metadata_service_that_never_answers_is_survived(service, drains, capsys):
    service.silent.add(service.ACTION)
    with Running(cloud="aws", metadata_url=service.url):
        until(lambda: service.ACTION in service.asked)
        service.silent.clear()
        service.over.set()  # that one request ends without an answer
        service.paths[service.ACTION] = in_seconds(60)
        until(lambda: drains)
    assert "trying again" in capsys.readouterr().err


def test_auto_on_a_machine_of_no_cloud_is_one_clear_line(service, drains):
    service.aws = service.gcp = service.azure = False
    with pytest.raises(ValueError, match="use --cloud file"):
        watch(WatchConfig(cloud="auto", metadata_url=service.url))


def test_a_file_drains_a_named_node(drains, tmp_path):
    path = tmp_path / "notice"
    with Running(cloud="file", file=str(path), node="b" * 56) as running:
        path.write_text('{"seconds": 30, "reason": "drill"}')
        running.join()
    ((node, reason, left_s),) = drains
    assert (node, reason) == ("b" * 56, "drill")
    assert 25 < left_s <= 28


def test_the_watch_waits_for_ray_to_start(drains, tmp_path, capsys):
    here, drains.nodes = drains.nodes, {}
    path = tmp_path / "notice"
    path.write_text("")
    with Running(cloud="file", file=str(path)) as running:
        until(lambda: "waiting for Ray" in capsys.readouterr().err)
        drains.nodes = here
        running.join()
    assert len(drains) == 1


def test_a_node_that_does_not_exist_is_one_clear_line(drains, tmp_path):
    with pytest.raises(ValueError, match="no living Ray node has the id ffff"):
        watch(WatchConfig(cloud="file", file=str(tmp_path / "n"), node="ffff", address="127.0.0.1:1"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cloud": "file"}, "say which file"),
        ({"interval_s": 0}, "above 0"),
        ({"grace_s": -1}, "not be negative"),
        ({"cloud": "oracle"}, "cloud"),
    ],
)
def test_mistaken_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        parse(WatchConfig, settings, where="command line")


def test_an_unreachable_cluster_is_not_taken_for_a_drained_node(monkeypatch):
    def away(_):
        raise RuntimeError("GCS is away")

    monkeypatch.setattr(preemption, "node_addresses", away)
    notice = notices.Notice(time.time() + 60, "test")
    assert "GCS is away" in notices._act(WatchConfig(address="127.0.0.1:1"), notice)


ON_A_CLUSTER = """
import os, threading, time
os.environ["RAY_ADDRESS"] = "local"
import ray
from ray.cluster_utils import Cluster
from cluster.announcement import announced, listen
from cluster.bulletin import Bulletin
from cluster.notices import WatchConfig, watch
from cluster.preemption import draining_nodes

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
spot = cluster.add_node(num_cpus=1, resources={"spot": 1})
ray.init(address=cluster.address, log_to_driver=False)

@ray.remote(resources={"spot": 1})
class Resident:  # an idle node that drains leaves by itself
    def ready(self): return True

resident = Resident.remote()
ray.get(resident.ready.remote())
config = WatchConfig(cloud="file", file=os.environ["NOTICE"], node=spot.node_id, address=cluster.address, interval_s=0.1, grace_s=1)
watching = threading.Thread(target=watch, args=(config,))
watching.start()
time.sleep(0.5)
assert draining_nodes() == {}
board = Bulletin()
listen(board, "test", 18.0)
written = time.time()
open(os.environ["NOTICE"], "w").write('{"seconds": 20}')
while not announced(board):
    time.sleep(0.02)
assert draining_nodes() == {} and watching.is_alive(), "announced before it is drained"
assert abs(announced(board)[spot.node_id] - (written + 19)) < 1
watching.join(10)
assert not watching.is_alive() and time.time() > written + 0.8
((node, deadline_ms),) = draining_nodes().items()
assert node == spot.node_id and abs(deadline_ms / 1000 - (written + 19)) < 1, (node, deadline_ms, written)
ray.shutdown()
cluster.shutdown()
print("passed")
"""


def test_a_file_drains_a_node_of_a_real_cluster(tmp_path):
    import os

    environment = os.environ | {"NOTICE": str(tmp_path / "notice")}
    done = subprocess.run([sys.executable, "-c", ON_A_CLUSTER], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "passed" in done.stdout
