import pytest

from benchmarks.serving import cpu_per_token, first_tokens, overload_figures, stream_figures, table, targets


def answer(times: list[float], tokens: int, *, at: float = 0.0, asked: int = 4, status: int = 200) -> dict:
    return {"times": times, "tokens": list(range(tokens)), "at": at, "asked": asked, "status": status, "error": ""}


REPLY = {
    "seconds": 2.0,
    "answers": [answer([0.5, 1.0], 4), answer([0.1], 4, at=0.6), answer([0.01], 0, status=429), answer([0.02], 0, status=500)],
}


def test_an_overloads_figures_count_everyone_once() -> None:
    figures = overload_figures(REPLY, 1.0)
    assert (figures["requests"], figures["admitted"], figures["refused"], figures["failed"]) == (4, 2, 1, 1)
    assert figures["ttft_p50_s"] == pytest.approx(0.3)
    assert figures["refusal_p99_s"] == 0.01
    assert figures["tokens_per_s"] == 4.0
    assert first_tokens(REPLY) == [0.5, 0.1]


def test_streams_are_counted_at_the_fullest_moment() -> None:
    figures = stream_figures(REPLY, {"proxy": 0.5})
    assert (figures["held"], figures["complete"]) == (2, 2)  # the second one's only frame, at 0.7, falls into the first one's time
    apart = {"seconds": 9.0, "answers": [answer([0.5, 1.0], 4), answer([0.5, 1.0], 3, at=5.0)]}
    assert (stream_figures(apart, {})["held"], stream_figures(apart, {})["complete"]) == (1, 1)


def test_cpu_is_told_per_token() -> None:
    assert cpu_per_token({"proxy": 2.0}, {"proxy": 2.5, "client": 0.1}, 100) == {"proxy": 5.0, "client": 1.0}


def rounds(served: float, bare: float) -> list[dict]:
    figures = {"ttft_p50_s": 0.1, "gap_p50_s": 0.02, "cpu_ms": {"proxy": 0.5}}
    return [{"served": figures | {"tokens_per_s": served * k}, "bare": figures | {"tokens_per_s": bare * k}} for k in (1, 2, 3)]


@pytest.mark.parametrize(("served", "added_s", "p99_s", "held", "verdict"), [(95, 0.01, 2.9, 256, "met"), (85, 0.02, 3.1, 255, "MISSED")])
def test_every_target_is_judged(served: float, added_s: float, p99_s: float, held: int, verdict: str) -> None:
    result = {
        "model": "m",
        "threads": 2,
        "throughput": rounds(served, 100.0),
        "rate": 1.0,
        "ttft": [{"bare": [0.1, 0.2, 0.3], "served": [0.1 + added_s, 0.2 + added_s, 0.3 + added_s]}] * 3,
        "overload": overload_figures(REPLY, 3.0) | {"ttft_p99_s": p99_s, "failed": 0},
        "streams": stream_figures(REPLY, {"proxy": 0.5}) | {"held": held, "complete": 256},
    }
    assert [line.split()[0] for line in targets(result)] == [verdict] * 4
    assert "proxy 0.50" in table(result)


def test_a_failed_request_or_a_broken_stream_misses_the_target() -> None:
    assert targets({"overload": overload_figures(REPLY, 3.0)})[0].startswith("MISSED")
    assert targets({"streams": {"held": 256, "complete": 255}})[0].startswith("MISSED")
