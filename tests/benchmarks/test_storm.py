"""The storm's bookkeeping: what is counted, what counts as broken, and when strikes come."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.storm_fleet import Strike, pauses
from benchmarks.storm_report import Outcome, broken_promises, plot, table
from pipelines.drill_streams import Heard, Question


def heard(*tokens: int) -> Heard:
    return Heard(list(tokens), "x" * len(tokens), [], "length", [0.0])


def stay(stream: str, how: str = "new", **fields: object) -> dict[str, object]:
    base = {"stream": stream, "how": how, "why": "because: so", "gap_s": None, "num_tokens": 5, "num_computed": None, "num_bytes": 0}
    return base | fields


def outcome(got: Heard, hit: list[str]) -> Outcome:
    stays = [stay("a"), stay("b"), stay("a", "kv", gap_s=0.02, num_computed=9, num_bytes=1000), stay("b", "crash", gap_s=0.5)]
    strikes = [Strike("spot-1", "n1", 10.0, 0.0, hit), Strike("spot-2", "n2", None, 1.0, hit)]
    return Outcome([Question("greedy", {})], [[heard(1, 2)]], [[[got]]], strikes, stays)


def test_a_storm_that_changed_nothing_keeps_its_promises(tmp_path: Path) -> None:
    found = {"kv": outcome(heard(1, 2), ["a", "b", "c", "d"]).figures()}
    assert broken_promises(found) == []
    assert found["kv"]["hits"] == {"2": 4}
    assert found["kv"]["gaps"]["kv"]["count"] == 1
    assert "1 of 1 streams complete" in table(found)
    plot({"kv": outcome(heard(1, 2), [])}, tmp_path / "gaps.png")
    assert (tmp_path / "gaps.png").exists()


@pytest.mark.parametrize(
    ("got", "hit", "what"),
    [
        (heard(1), ["a", "b", "c", "d"], "differ"),  # a token lost
        (heard(1, 2, 2), ["a", "b", "c", "d"], "differ"),  # one repeated
        (heard(1, 2), ["a", "b", "c"], "hit only 3"),
        (heard(1, 2), ["a", "c", "d", "e"], "never hit"),
    ],
)
def test_whatever_a_client_would_notice_is_a_broken_promise(got: Heard, hit: list[str], what: str) -> None:
    broken = broken_promises({"kv": outcome(got, hit).figures()})
    assert len(broken) == 1
    assert what in broken[0]


def test_a_storm_in_which_no_kv_moved_proves_nothing_about_kv() -> None:
    found = outcome(heard(1, 2), ["a", "b", "c", "d"])
    still = Outcome(found.asked, found.undisturbed, found.heard, found.strikes, [row for row in found.stays if row["how"] != "kv"])
    assert broken_promises({"kv": still.figures()}) == ["kv: no stream moved with its KV"]


def test_pauses_have_the_rhythm_of_the_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("0,add,n1\n1000,remove,n1\n1000,remove,n2\n2000,remove,n3\n5000,remove,n4\n")
    assert pauses(trace, 4, 2.0) == [1.0, 3.0, 1.0, 3.0]
    trace.write_text("0,add,n1\n")
    with pytest.raises(ValueError, match="fewer than two removals"):
        pauses(trace, 4, 2.0)
