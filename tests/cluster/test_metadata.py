"""The clouds' answers, parsed; and their protocols, spoken to small real servers."""

from __future__ import annotations

import doctest
import json
import math
import os
import threading
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import metadata
from cluster.metadata import (
    AwsMetadata,
    AzureMetadata,
    GcpMetadata,
    NoticeFile,
    parse_aws_action,
    parse_aws_rebalance,
    parse_azure_events,
    parse_file,
    parse_gcp_preempted,
)  # fmt: skip


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=2.0, trust_env=False) as made:
        yield made


def test_doctests():
    assert doctest.testmod(metadata).failed == 0


def test_aws_action_is_parsed():
    notice = parse_aws_action('{"action": "terminate", "time": "1970-01-01T01:00:00Z"}')
    assert notice.deadline == 3600
    assert notice.final
    assert "terminate" in notice.reason


def test_aws_rebalance_has_no_deadline():
    notice = parse_aws_rebalance('{"noticeTime": "2026-11-22T08:22:00Z"}')
    assert notice.deadline == math.inf
    assert not notice.final


@pytest.mark.parametrize(
    "body", ["", "[]", "{}", '{"action": 3, "time": "2026-11-22T08:22:00Z"}', '{"action": "stop"}', '{"action": "stop", "time": "soon"}']
)
def test_an_action_that_is_none_is_an_error(body):
    with pytest.raises(ValueError, match="instance-action"):
        parse_aws_action(body)


def test_gcp_words():
    assert parse_gcp_preempted("FALSE\n", 5.0) is None
    assert parse_gcp_preempted("TRUE", 5.0).deadline == 35.0
    with pytest.raises(ValueError, match="expected TRUE or FALSE"):
        parse_gcp_preempted("<html>", 5.0)


@given(st.floats(0, 1e6), st.floats(0, 1e9))
def test_a_files_seconds_count_from_when_it_was_written(seconds, written):
    assert parse_file(f'{{"seconds": {seconds}}}', written).deadline == written + seconds


def test_a_file_may_be_empty_or_give_a_time():
    assert parse_file(" \n", 10.0).deadline == 10.0 + metadata.FILE_WARNING_S
    assert parse_file('{"time": "1970-01-01T00:01:00+00:00", "reason": "drill"}', 10.0) == metadata.Notice(60.0, "drill")


@pytest.mark.parametrize("body", ["soon", '{"seconds": -1}', '{"seconds": "3"}', '{"seconds": true}', '{"secs": 3}', '{"seconds": NaN}'])
def test_a_file_with_a_mistake_is_an_error(body):
    with pytest.raises(ValueError, match="notice file"):
        parse_file(body, 0.0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["EventType", "NotBefore", "time", "x"]) | st.text(), inner),
)
EVENT = st.fixed_dictionaries(
    {"EventType": st.sampled_from(["Preempt", "Freeze"]) | JSON, "EventStatus": st.sampled_from(["Scheduled", "Started"]) | JSON,
     "Resources": st.just(["me"]) | JSON, "NotBefore": JSON, "EventId": JSON}
)  # fmt: skip
EVENTS = st.fixed_dictionaries({"DocumentIncarnation": st.integers() | JSON, "Events": st.lists(EVENT) | JSON})


@given(st.text() | (JSON | EVENTS).map(json.dumps))
def test_no_text_crashes_a_parser(body):
    for parse in (
        parse_aws_action,
        parse_aws_rebalance,
        lambda b: parse_gcp_preempted(b, 0.0),
        lambda b: parse_file(b, 0.0),
        lambda b: parse_azure_events(b, "me", 0.0),
    ):
        try:
            parse(body)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1, error  # noqa: PT017  (most texts raise, some need not)


def test_aws_is_asked_with_a_token_and_gives_the_interruption_before_the_recommendation(service, client):
    source = AwsMetadata(client, service.url)
    assert source.check() is None
    service.paths[service.REBALANCE] = '{"noticeTime": "2026-11-22T08:22:00Z"}'
    assert source.check().deadline == math.inf
    service.paths[service.ACTION] = '{"action": "terminate", "time": "1970-01-01T01:00:00Z"}'
    assert source.check().deadline == 3600
    assert service.asked.count("PUT") == 1, "one token serves many requests"


def test_an_expired_token_is_renewed(service, client):
    source = AwsMetadata(client, service.url)
    source.check()
    service.ahead_s = 21601
    service.paths[service.ACTION] = '{"action": "stop", "time": "1970-01-01T01:00:00Z"}'
    assert source.check().final
    assert service.asked.count("PUT") == 2


def test_the_recommendation_can_be_left_alone(service, client):
    service.paths[service.REBALANCE] = '{"noticeTime": "2026-11-22T08:22:00Z"}'
    assert AwsMetadata(client, service.url, rebalance=False).check() is None
    assert service.REBALANCE not in service.asked


def test_a_failing_service_is_an_http_error(service, client):
    service.fail = True
    with pytest.raises(httpx.HTTPError):
        AwsMetadata(client, service.url).check()
    with pytest.raises(httpx.HTTPError):
        GcpMetadata(client, service.url).check()


def test_gcps_deadline_counts_from_the_first_true(service, client):
    clock = iter([100.0, 105.0, 110.0])
    source = GcpMetadata(client, service.url, now=lambda: next(clock))
    service.paths[service.PREEMPTED] = "FALSE"
    assert source.check() is None
    service.paths[service.PREEMPTED] = "TRUE"
    assert source.check().deadline == source.check().deadline == 135.0


def test_a_notice_file_is_noticed_when_it_appears(tmp_path):
    path = tmp_path / "notice"
    source = NoticeFile(str(path))
    assert source.check() is None
    path.write_text('{"seconds": 30}')
    os.utime(path, (1000, 1000))
    assert source.check().deadline == 1030


def test_a_token_lost_to_its_hop_limit_is_told_as_such(service, client):
    client.timeout = 0.05
    service.silent.add(service.TOKEN)
    with pytest.raises(httpx.ReadTimeout, match="HttpPutResponseHopLimit must be 2"):
        AwsMetadata(client, service.url).check()


def test_a_metadata_service_that_is_switched_off_is_an_error(service, client):
    service.aws = service.gcp = service.azure = False
    for source in (AwsMetadata(client, service.url), GcpMetadata(client, service.url), AzureMetadata(client, service.url)):
        with pytest.raises(httpx.HTTPStatusError):
            source.check()


def azure(*events: dict, incarnation: int = 1) -> str:
    return json.dumps({"DocumentIncarnation": incarnation, "Events": events})


def event(kind: str = "Preempt", *, name: str = "me", status: str = "Scheduled", at: str = "Thu, 01 Jan 1970 00:01:00 GMT") -> dict:
    return {"EventId": f"id-{kind}", "EventStatus": status, "EventType": kind, "Resources": [name], "NotBefore": at}


def test_an_azure_event_that_ends_this_machine_is_a_notice():
    incarnation, notice = parse_azure_events(azure(event(), incarnation=7), "ME", 5.0)
    assert (incarnation, notice.deadline, notice.event) == (7, 60.0, "id-Preempt")
    assert "evicts" in notice.reason


@pytest.mark.parametrize(
    "other",
    [event("Freeze"), event(name="another"), event(status="Completed"), event("Party"), {"EventType": "Preempt"}],
    ids=["freeze", "another machine", "over", "unknown", "half an event"],
)
def test_other_azure_events_are_none(other):
    assert parse_azure_events(azure(other), "me", 5.0) == (1, None)
    assert parse_azure_events(azure(other, event("Terminate")), "me", 5.0)[1].event == "id-Terminate"


def test_an_azure_event_that_has_started_is_due_now_and_the_earliest_counts():
    started = event("Terminate", status="Started", at="")
    assert parse_azure_events(azure(event(), started), "me", 5.0)[1].deadline == 5.0


@pytest.mark.parametrize("body", ["[]", "{}", azure(event(at="soon")), '{"Events": [3], "DocumentIncarnation": 1}', '{"Events": []}'])
def test_a_document_of_azure_that_is_none_is_an_error(body):
    with pytest.raises(ValueError, match="scheduledevents"):
        parse_azure_events(body, "me", 5.0)


def test_azure_is_asked_for_its_name_once_and_then_for_events(service, client):
    source = AzureMetadata(client, service.url)
    assert source.check() is None
    service.schedule("Preempt", 30, resources=("fleet_2",))
    assert source.check() is None, "that is a neighbour's"
    identity = service.schedule("Preempt", 30)
    notice = source.check()
    assert notice.event == identity
    assert notice.final
    assert service.asked.count(service.NAME) == 1
    source.acknowledge(notice)
    assert service.started == [identity]


def test_the_same_document_of_azure_gives_the_same_deadline(service, client):
    clock = iter([100.0, 105.0, 110.0])
    source = AzureMetadata(client, service.url, now=lambda: next(clock))
    service.schedule("Preempt", 0, status="Started")
    assert source.check().deadline == source.check().deadline == 100.0
    service.events.clear()
    service.incarnation += 1
    assert source.check() is None


def test_azures_first_answer_may_be_slow_and_later_ones_may_not(service, client):
    client.timeout = 0.3
    source = AzureMetadata(client, service.url)
    service.silent.add(service.EVENTS)
    threading.Timer(0.6, service.silent.clear).start()
    threading.Timer(0.6, service.over.set).start()
    with pytest.raises(httpx.RemoteProtocolError):  # heard out to its (here: empty) end, long after the usual patience
        source.check()
    assert source.check() is None
    service.over.clear()
    service.silent.add(service.EVENTS)
    with pytest.raises(httpx.ReadTimeout):
        source.check()
