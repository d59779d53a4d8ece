"""The clouds' answers, parsed; and their protocols, spoken to small real servers."""

from __future__ import annotations

import doctest
import math
import os
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import metadata
from cluster.metadata import AwsMetadata, GcpMetadata, NoticeFile, parse_aws_action, parse_aws_rebalance, parse_file, parse_gcp_preempted


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


@given(st.text())
def test_no_text_crashes_a_parser(body):
    for parse in (parse_aws_action, parse_aws_rebalance, lambda b: parse_gcp_preempted(b, 0.0), lambda b: parse_file(b, 0.0)):
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
    service.tokens.clear()
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
