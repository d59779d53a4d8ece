"""The replay counts every step; the published drafters draft what their papers say; ours is the best of them."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.draft_peers import PromptLookup, PublishedAnpd, SuffixCounts, SuffixDecoding
from benchmarks.draft_replay import COSTS, Tally, Turn, compare, plot, read_turns, replay


class Fixed:
    """Always proposes the same."""

    def __init__(self, draft: list[int]) -> None:
        self.draft, self.observed, self.judged = draft, [], []

    def observe(self, tokens: list[int]) -> None:
        self.observed.append(list(tokens))

    def propose(self, verify_cost: float) -> list[int]:
        return self.draft

    def judge(self, num_accepted: int) -> None:
        self.judged.append(num_accepted)

    def recycle(self, tokens: list[int], successors: list[int]) -> None:
        raise AssertionError("a replay has no model that could say what follows")


def test_every_step_counts_and_the_drafter_hears_what_the_engine_would_tell_it() -> None:
    drafter = Fixed([1, 2])
    tally = replay(drafter, Turn(prompt=[9, 9], answer=[1, 2, 3, 1, 5, 7]), verify_cost=0.1)
    assert drafter.observed == [[9, 9], [1, 2, 3], [1, 5], [7]]
    assert drafter.judged == [2, 1, 0]
    assert (tally.tokens, tally.steps, tally.drafted) == (6, 3, 4)  # the last step has room for the bonus token only
    assert Tally(tokens=6, steps=3, drafted=4).speedup(0.5) == 6 / 5


def test_prompt_lookup_takes_the_first_match_of_the_longest_n_gram() -> None:
    drafter = PromptLookup(longest=2, max_draft=3)
    drafter.observe([1, 2, 3, 4, 1, 2, 5, 2, 6, 1, 2])
    assert drafter.propose(0.0) == [3, 4, 1]


def test_published_anpd_joins_the_ends_of_the_prompt_and_drafts_token_one_on_a_miss() -> None:
    drafter = PublishedAnpd(order=3, max_draft=3)
    drafter.observe([4, 5, 6])
    assert drafter.propose(0.0) == [4, 5, 6]  # 4 never followed 6
    drafter.observe([7])
    assert drafter.propose(0.0) == [1]


def test_suffix_decoding_takes_the_speculation_with_the_highest_score() -> None:
    past = SuffixCounts(depth=8)
    past.extend([], [5, 6, 7, 8, 5, 6, 7, 9, 5, 6, 7, 8])
    drafter = SuffixDecoding(past, factor=1.0)
    drafter.observe([1, 5, 6])
    assert drafter.propose(0.0) == [7, 8]  # as long as the match
    assert SuffixDecoding(past, factor=4.0).propose(0.0) == []


@pytest.fixture(scope="module")
def data(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with gzip.open(data_dir / "draft" / "vicuna7b-mtbench.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines][:12]
    file = tmp_path_factory.mktemp("replay") / "turns.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_ours_is_the_best_row_at_every_cost(data: Path, tmp_path: Path) -> None:
    rows = compare(read_turns(data), repeats=1)
    ours, others = rows[-1], rows[:-1]
    assert ours["drafter"] == "ours"
    for cost in map(str, COSTS):
        assert ours["speedup"][cost] >= max(1.0, *(row["speedup"][cost] for row in others if not row["drafter"].startswith("ours"))), cost
    plot(rows, tmp_path / "speedup.svg")
    assert "ANPD as published" in (tmp_path / "speedup.svg").read_text()


def test_the_command_writes_its_figures(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "replay.json"
    command = ["--data", str(data), "--first", "2", "--repeats", "1", "--json", str(file)]
    done = subprocess.run([sys.executable, "-m", "benchmarks.draft_replay", *command], capture_output=True, text=True, check=True)
    assert "2 requests" in done.stdout
    assert json.loads(file.read_text())["rows"][-1]["us_per_token"] > 0


def test_a_line_that_is_no_request_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt_ids": [1], "answer_ids": [2]}\n{"prompt": "x"}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_turns(file)
