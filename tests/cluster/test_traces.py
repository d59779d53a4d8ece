"""Traces: two spot formats become one shape, and a file that is not what it should be is one line."""

import json

import numpy as np
import pytest

from cluster.traces import read_load, read_spot, steady_load


def write(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_availability_becomes_steps(tmp_path):
    text = json.dumps({"metadata": {"gap_seconds": 100}, "data": [4, 4, 2, 2, 0]})
    trace = read_spot(write(tmp_path, "sky-zone-a.json", text))
    assert (trace.zone, trace.most, trace.end_s) == ("zone-a", 4, 500)
    assert trace.times_s.tolist() == [0, 200, 400]
    assert trace.counts.tolist() == [4, 2, 0]
    assert trace.at(np.asarray([0, 199, 200, 450, 500])).tolist() == [4, 4, 2, 0, 4]


def test_events_become_steps_from_the_first_machine_on(tmp_path):
    text = "60000,add,n1\n60000,add,n2\n120000,remove,n1\n180000,add,n3\n"
    trace = read_spot(write(tmp_path, "bamboo.csv", text))
    assert trace.times_s.tolist() == [0, 60, 120]
    assert trace.counts.tolist() == [2, 1, 2]
    assert trace.end_s > 120


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"metadata": {"gap_seconds": 0}, "data": [1]}', "gap_seconds is 0"),
        ('{"data": [1]}', "gap_seconds is None"),
        ('{"metadata": {"gap_seconds": 5}}', "has no data"),
        ('{"metadata": {"gap_seconds": 5}, "data": [1, -1]}', r"data\[1\] is -1"),
        ('{"metadata": {"gap_seconds": 5}, "data": [1, NaN]}', r"data\[1\] is nan"),
        ('{"metadata": {"gap_seconds": 5}, "data": [0, 0]}', "never offers a machine"),
        ("", "neither JSON"),
        ("1,2\n", r"line 1: '1,2'; expected millisecond,add,node"),
        ("x,add,n\n", "line 1: 'x'; expected milliseconds"),
        ("5000,add,a\n1000,add,b\n", "line 2: time goes back"),
    ],
)
def test_a_bad_spot_trace_is_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_spot(write(tmp_path, "trace", text))
    assert "\n" not in str(error.value)
    assert "trace" in str(error.value)


HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def test_requests_are_seconds_from_the_first(tmp_path):
    lines = "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:48.6805900,10,7\n"
    trace = read_load(write(tmp_path, "load.csv", HEAD + lines))
    assert trace.arrivals_s.tolist() == [0, 2]
    assert trace.prompt_tokens.tolist() == [374, 10]
    assert trace.output_tokens.tolist() == [44, 7]
    assert trace.end_s == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "expected TIMESTAMP"),
        (HEAD, "has 0 requests"),
        (HEAD + "soon,1,1\n2023-11-16 18:15:48,1,1\n", "line 2: 'soon' is no time"),
        (HEAD + "2023-11-16 18:15:47,1,1\n2023-11-16 18:15:48,1,-1\n", "line 3: '-1'; expected a number of tokens"),
        (HEAD + "2023-11-16 18:15:47,1,1\n2023-11-16 18:15:48,1\n", "line 3: has 2 fields"),
        (HEAD + "2023-11-16 18:15:47,1,1\n" * 2, "same moment"),
    ],
)
def test_a_bad_load_trace_is_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_load(write(tmp_path, "load.csv", text))


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_spot(tmp_path / "none.json")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_spot(tmp_path / "bytes")
    with pytest.raises(ValueError, match="cannot be read"):
        read_load(tmp_path)


def test_a_steady_load_is_steady():
    assert set(np.diff(steady_load().arrivals_s)) == {1.0}
