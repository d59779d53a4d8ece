"""The storm's bookkeeping: what is counted, what counts as broken, and how it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.storm_report import broken_promises, figures, gaps, hits, markdown, plot, table

NAMES = "abcd"


def stay(stream: str, node: str, end: str = "done", **fields: Any) -> dict[str, Any]:
    base = {"stream": stream, "node_id": node, "end": end, "end_s": 5.0, "how": "new", "why": "because: so", "gap_s": None, "num_tokens": 5}
    return base | {"num_computed": None, "num_computed_again": None, "num_bytes": 0} | fields


def stream(name: str, **fields: Any) -> dict[str, Any]:
    base = {"stream": name, "kind": "greedy", "question": 0, "choice": 0, "num_tokens": 9, "num_wanted": 9, "complete": True}
    return base | {"silence_s": 0.4, "difference": "", "why": None} | fields


def wave() -> dict[str, Any]:
    """Four streams: taken from n1 with notice, from n2 without."""
    stays = []
    for name in NAMES:
        stays += [
            stay(name, "n1", "moved"),
            stay(name, "n2", "lost", how="kv", gap_s=0.02, num_computed=9, num_computed_again=9, num_bytes=1000),
            stay(name, "n3", how="crash", gap_s=0.5, num_computed=50),
        ]
    strikes = [
        {"victim": "spot-1", "node_id": "n1", "notice_s": 10.0, "at_s": 1.0, "gone_s": 11.0, "aimed": list(NAMES)},
        {"victim": "spot-2", "node_id": "n2", "notice_s": None, "at_s": 2.0, "gone_s": 2.0, "aimed": list(NAMES)},
    ]
    return {"began_s": 0.0, "ended_s": 20.0, "streams": [stream(name) for name in NAMES], "strikes": strikes, "stays": stays}


def broken(*waves: dict[str, Any], num_strikes: int = 2) -> list[str]:
    return broken_promises({"kv": figures(waves)}, num_strikes=num_strikes)


def test_a_storm_that_changed_nothing_keeps_its_promises(tmp_path: Path) -> None:
    found = {"kv": {**figures([wave()]), "waves": [wave()]}}
    assert broken(wave()) == []
    f = found["kv"]
    assert f["hits"] == {"2": 4}
    assert f["hits_by_kind"] == {"greedy": {"2": 4}}
    assert (f["gaps"]["kv"]["count"], f["gaps"]["crash"]["p50_s"], f["unprovoked"]) == (4, 0.5, 0)
    assert "4 of 4 streams complete" in table(found)
    assert "strikes by stream: 4 streams 2x" in table(found)
    plot(found, tmp_path / "storm.png")
    assert (tmp_path / "storm.png").stat().st_size > 0


def changed(**fields: Any) -> dict[str, Any]:
    made = wave()
    made["streams"][0] |= fields
    return made


def restayed(number: int, **fields: Any) -> dict[str, Any]:
    made = wave()
    made["stays"][number] |= fields
    return made


def without(what: str, number: int) -> dict[str, Any]:
    made = wave()
    del made[what][number]
    return made


@pytest.mark.parametrize(
    ("waves", "what"),
    [
        ([changed(complete=False)], "1 streams did not end"),
        ([changed(num_tokens=8, difference="8 tokens for 9", why={"explained": False})], "differ from the undisturbed"),
        ([changed(difference="a stream failed", why=None)], "differ from the undisturbed"),
        ([restayed(0, end="done")], "hit only 3"),  # it ended in time: no hit, whatever the strike aimed at
        ([restayed(0, end_s=0.5)], "hit only 3"),  # it had left before
        ([restayed(1, num_tokens=0)], "hit only 3"),  # it had not begun there
        ([without("strikes", 1)], "only 1 strikes"),
        ([wave() | {"strikes": [wave()["strikes"][0]] * 2}], "not half"),
        ([restayed(1, num_computed_again=17)], "17 tokens were computed again"),
        ([restayed(1, num_computed_again=None, num_computed=40)], "40 tokens were computed again"),  # nobody said what was computed before
        ([wave() | {"stays": [row for row in wave()["stays"] if row["how"] != "crash"]}], "no stream went on after a crash"),
        ([wave() | {"streams": [*wave()["streams"], stream("e")]}], "1 streams were never hit"),
    ],
)
def test_whatever_a_client_or_a_sceptic_would_notice_is_a_broken_promise(waves: list[dict[str, Any]], what: str) -> None:
    found = broken(*waves)
    assert len(found) == 1
    assert what in found[0]


def test_a_storm_in_which_no_kv_moved_proves_nothing_about_kv() -> None:
    still = wave()
    for row in still["stays"]:
        row["how"] = "recompute" if row["how"] == "kv" else row["how"]
    assert broken(still) == ["kv: no stream moved with its KV"]


def test_no_stream_at_all_is_no_success() -> None:
    assert any("did not end" in what for what in broken())


def test_what_rounding_explains_is_counted_and_not_broken() -> None:
    close = {"position": 3, "tokens": [1, 2], "error": 1e-7, "noise": 2e-6, "explained": True}
    found = figures([changed(difference="token 3 differs", why=close)])
    assert (len(found["differences"]), found["unexplained"], found["largest_error"], found["least_noise"]) == (1, 0, 1e-7, 2e-6)
    assert "1.0e-07 of a logit apart, rounding 2.0e-06: explained" in found["differences"][0]
    assert broken(changed(difference="token 3 differs", why=close)) == []


def test_a_stream_that_went_on_elsewhere_without_a_strike_is_told() -> None:
    assert figures([restayed(2, end="lost")])["unprovoked"] == 1


def test_a_stream_hit_in_one_wave_only_is_no_cover_for_another_wave() -> None:
    second = wave()
    for part in ("streams", "stays"):
        second[part] = [row | {"stream": f"{row['stream']}2"} for row in second[part]]
    second["stays"] = [row | ({"end": "done"} if row["stream"] == "a2" else {}) for row in second["stays"]]
    assert hits(second)["a2"] == 0
    assert any("1 streams were never hit" in what for what in broken(wave(), second, num_strikes=4))


def test_bounced_streams_keep_their_gap() -> None:
    assert gaps([restayed(2, how="bounce", gap_s=7.0)])["bounce"] == [7.0]


def test_the_tables_for_the_documentation_have_every_figure() -> None:
    plain = {"streams": 50, "complete": 28, "lost": 20, "hit": 25, "hit_and_lost": 20, "refused": 1, "strikes": wave()["strikes"]}
    found = {"kv": figures([wave()]), "recompute": figures([wave()]), "plain": plain}
    lines = markdown(found).splitlines()
    assert lines[0] == "| | KV moves where it pays | KV never moves | plain Ray Serve |"
    assert {line.count("|") for line in lines} == {5}
    assert any("20 / 20 (4)" in line for line in lines)
    assert "40% lost, of those hit 80%" in markdown(found)
    assert "20 of 50 streams lost (40%), 28 complete, the others went on; of 25 that were hit 20 (80%)" in table(found)
