"""What the judges of quality are worth, and what they cost: they are told apart, the table is the file, the best run counts."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import sys
import time

import numpy as np
import pytest

from benchmarks import quality

TALE = "the terns of north fly over sea and ice to a far coast that no egg has seen with their young in summer".split()  # noqa: SIM905
SHOP = "buy cheap click now best price deal win sale shop order online today discount free offer 50% >> *** $$$".split()  # noqa: SIM905


def _page(words, seed):
    pick = random.Random(f"{words[0]} {seed}")
    return "\n".join(" ".join(pick.sample(words, 12)).capitalize() + "." for _ in range(12))


TEXTS = [_page(words, seed) for seed in range(25) for words in (TALE, SHOP)]
LABELS = [1, 0] * 25
REFERENCE = [" ".join(_page(TALE, f"reference {seed}") for seed in range(40))]


def test_each_judge_is_told_apart_by_what_it_looks_at():
    found = quality.worth(TEXTS, LABELS, REFERENCE)
    assert found["classifier"][0] > 0.95
    assert found["perplexity"][0] > 0.95  # the reference reads like the good ones
    assert found["rules"] == (1.0, 0.0)  # shops without a stop word break one, tales none
    turned = quality.worth(TEXTS, [1 - label for label in LABELS], REFERENCE)
    assert turned["perplexity"][0] == pytest.approx(1 - found["perplexity"][0])
    assert turned["rules"][0] == 0.0


def test_the_best_of_three_runs_counts(monkeypatch):
    clock = iter(itertools.accumulate([0.0, 3.0, 0.0, 1.0, 0.0, 2.0]))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    runs: list[int] = []
    assert quality.best_of(lambda: runs.append(1)) == 1.0
    assert len(runs) == 3


def test_the_command_prints_what_it_writes(tmp_path, monkeypatch, capsys):
    for folder in ("docs", "web"):
        (tmp_path / folder).mkdir()
    labelled = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(TEXTS, LABELS, strict=True))
    (tmp_path / "docs" / "quality-labels.jsonl").write_text(labelled)
    (tmp_path / "docs" / "wiki-sample.txt").write_text(REFERENCE[0])
    response = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html><body><p>" + TEXTS[0].encode() + b"</p></body></html>"
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.b/\r\nContent-Length: {len(response)}\r\n\r\n".encode()
    (tmp_path / "web" / "sample-0000.warc.gz").write_bytes(gzip.compress(head + response + b"\r\n\r\n"))
    monkeypatch.setattr(sys, "argv", ["quality", "--data", str(tmp_path), "--json", str(tmp_path / "runs" / "quality.json")])
    quality.main()
    found, printed = json.loads((tmp_path / "runs" / "quality.json").read_text()), capsys.readouterr().out
    assert (found["documents"], found["good"]) == (50, 25)
    assert f"ROC AUC, classifier  {found['classifier'][0]:.3f}" in printed
    assert np.all(np.array(list(found["megabytes_per_second"].values())) > 0)
    assert len(printed.splitlines()) == 4 + len(found["megabytes_per_second"])
