"""What gateways report, and what their reports together say."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.autoscale import AutoscaleSettings, Target, target_replicas
from serve.limits.admission import Admission, Limits
from serve.limits.first_token import Expectation, Stream
from serve.scaling.load import Window, report

HERE = Expectation(0.0, waits=False)


class Nobody:
    def refused(self, reason: str) -> None: ...
    def admitted(self, num_prompt: int) -> None: ...
    def heard(self, num_tokens: int, since_s: float, *, first: bool) -> None: ...


def door(*streams: Stream, share: float = 0.5, now_s: float = 100.0) -> Admission:
    made = Admission((), Limits(max_queue=8), slots=lambda: 1, clock=lambda: now_s, observer=Nobody())
    made.first_token.share = share
    made.streams = {id(stream): stream for stream in streams}
    return made


def test_a_report_says_who_waits_and_what_is_still_owed() -> None:
    runs = Stream(5, 100, 90.0, HERE, num_tokens=20, first_s=91.0)
    waits = Stream(5, 400, 93.0, HERE)
    said = report(door(runs, waits), num_tokens=1000.0, num_refused=2.0)
    assert (said["streams"], said["waiting"], said["waiting_tokens"], said["longest_wait_s"]) == (2, 1, 200.0, 7.0)
    assert said["asked"] == 1000 + (50 - 20) + 200
    assert report(door(), 0.0, 0.0)["mean_tokens"] == 0.0


def test_embeddings_are_load_too() -> None:
    admission = door()
    admission.backlog.add(500, now_s=99.0)
    said = report(admission, 0.0, 0.0)
    assert (said["streams"], said["waiting"], said["waiting_tokens"]) == (1, 1, 1.0)
    window = Window()
    window.add({"a": {**said, "time_s": 1.0}})
    assert target_replicas(window.load(), Target(0), AutoscaleSettings(), 0.0).num_replicas == 1


def note(time_s: float, asked: float, **more: float) -> dict[str, float]:
    return {"time_s": time_s, "asked": asked, "refused": 0, "mean_tokens": 100, "streams": 0, "waiting": 0, "waiting_tokens": 0, **more}


def test_the_load_is_all_gateways_together_over_the_window() -> None:
    window = Window(seconds=10)
    window.add({"a": note(0, 0), "b": note(0, 50)})
    assert window.load().tokens_per_s == 0
    window.add({"a": note(4, 400, streams=3, waiting=2, waiting_tokens=80), "b": note(4, 90, refused=2, streams=1)})
    load = window.load()
    assert load.tokens_per_s == pytest.approx(100 + 10 + 2 / 4 * 100)
    assert (load.streams, load.queued, load.queued_tokens) == (2, 2, 80)


def test_a_gateway_that_is_gone_is_forgotten_and_a_new_one_begins_at_nothing() -> None:
    window = Window()
    window.add({"old": note(0, 0)})
    window.add({"old": note(5, 5000), "new": note(5, 0)})
    assert window.load().tokens_per_s == 1000
    window.add({"new": note(6, 30)})
    assert window.load().tokens_per_s == 30
    window.add({})
    assert window.load().tokens_per_s == 0


@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 1000)), min_size=2, max_size=40), st.floats(1, 20))
def test_the_rate_is_the_growth_over_the_last_seconds(steps: list[tuple[float, float]], seconds: float) -> None:
    times, totals = (list(accumulate(column)) for column in zip(*steps, strict=True))
    window = Window(seconds=seconds)
    for time_s, total in zip(times, totals, strict=True):
        window.add({"a": note(time_s, total)})
        window.add({"a": note(time_s, total + 1e9)})  # the same moment again is no news
    since = next(i for i in reversed(range(len(times) - 1)) if i == 0 or times[i] <= times[-1] - seconds)
    want = (totals[-1] - totals[since]) / (times[-1] - times[since])
    assert window.load().tokens_per_s == pytest.approx(want, rel=1e-6, abs=1e-6)
