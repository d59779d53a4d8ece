"""Messages and progress go to stderr, never to stdout; a log gets few lines, a terminal a bar."""

from __future__ import annotations

import sys

import pytest

from cluster import console
from cluster.console import progress, say


def test_messages_go_to_stderr(capsys):
    say("one line")
    assert capsys.readouterr() == ("", "one line\n")


def test_a_log_gets_one_line_per_interval(capsys, monkeypatch):
    clock = iter([0.0, 0.0, 4.0, 9.0, 11.0, 12.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with progress("train", 100, "steps") as advance:
        for _ in range(4):
            advance(10, note="loss 3.2")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "train: 30/100 steps  loss 3.2  about 26 s left\n"


@pytest.mark.parametrize("total", [0, 3])
def test_a_terminal_gets_a_bar(monkeypatch, capsys, total):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress("train", total) as advance:
        advance(total, note="done")
    assert capsys.readouterr().out == ""


def test_work_that_fails_ends_the_bar_and_keeps_its_error(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(RuntimeError, match="broken"), progress("train", 3):
        raise RuntimeError("broken")
