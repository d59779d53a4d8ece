"""The arriving load: the trace's own shape, scaled; figures of a reply."""

import doctest
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import load
from benchmarks.load import LONGEST_OUTPUT, LONGEST_PROMPT, Arrival, at_rate, latencies, questions, read_trace, shorten

TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.6805900,9999,1000\n"


def test_doctests():
    assert doctest.testmod(load).failed == 0


def test_a_trace_begins_at_zero(tmp_path: Path):
    file = tmp_path / "trace.csv"
    file.write_text(TRACE)
    assert read_trace(file, 5) == [Arrival(0.0, 374, 44), Arrival(4.0, 9999, 1000)]


@given(
    st.lists(st.tuples(st.floats(0.001, 100), st.integers(1, 20_000), st.integers(1, 5_000)), min_size=2, max_size=30), st.floats(0.1, 50)
)
def test_scaling_keeps_the_shape(rows: list[tuple[float, int, int]], rate: float):
    at, trace = 0.0, []
    for gap, num_prompt, num_output in rows:
        trace.append(Arrival(at, num_prompt, num_output))
        at += gap
    short = shorten(trace)
    assert all(4 <= a.num_prompt <= LONGEST_PROMPT and 4 <= a.num_output <= LONGEST_OUTPUT for a in short)
    scaled = at_rate(short, rate)
    assert (len(scaled) - 1) / scaled[-1].at_s == pytest.approx(rate)
    factor = scaled[1].at_s / trace[1].at_s
    assert [a.at_s for a in scaled] == pytest.approx([a.at_s * factor for a in trace])
    asked = questions(scaled, vocab_size=50)
    assert [len(q["prompt"]) for q in asked] == [a.num_prompt for a in short]
    assert all(4 <= t < 50 for q in asked for t in q["prompt"])


def test_figures_of_a_reply():
    answers = [{"times": [0.1, 0.2, 0.4], "counts": [1, 1, 1], "tokens": [5, 6, 7]}, {"times": [0.3], "counts": [1], "tokens": [8]}]
    found = latencies({"seconds": 2.0, "answers": answers})
    assert found["tokens_per_s"] == 2.0
    assert found["ttft_p50_s"] == pytest.approx(0.2)
    assert found["gap_p50_s"] == pytest.approx(0.15)
