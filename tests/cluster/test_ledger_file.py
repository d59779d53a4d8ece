"""The ledger's file: appended, torn, locked, read while it is kept; and the verb that prints it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.ledger import Joined, Ledger, Tick
from cluster.ledger_file import LedgerConfig, LedgerFile, ledger, open_ledger
from cluster.market import ON_DEMAND, SPOT, Pool
from cluster.price_book import Price

ROOT = Path(__file__).resolve().parents[2]
POOL = Pool("us-west-2a", "m7i.4xlarge")
ENTRIES = [
    Price(POOL, SPOT, 0.3),
    Price(Pool("us-west-2", "m7i.4xlarge"), ON_DEMAND, 1.0),
    Joined("a", POOL, SPOT, 0.0),
    Tick(7200.0, 2_000_000),
]


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "books" / "costs.jsonl")


def test_a_keeper_that_returns_goes_on(path):
    first = LedgerFile(path)
    first.append(ENTRIES)
    first.close()
    second = LedgerFile(path)
    assert second.ledger.bill() == Ledger.of(ENTRIES).bill()
    second.append([Tick(10800.0, 1)])
    assert open_ledger(path).bill() == second.ledger.bill() == Ledger.of([*ENTRIES, Tick(10800.0, 1)]).bill()
    second.close()


KILLED = """
import os, signal, sys
from cluster.ledger import Tick
from cluster.ledger_file import LedgerFile
file = LedgerFile(sys.argv[1])
file.append([Tick(1.0, 3)])
file._file.write(b'{"entry":"tick","now_s":2.0,"tok')
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_keeper_killed_in_the_middle_of_a_line_loses_that_line_alone(path):
    subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT, check=False)
    kept = LedgerFile(path)
    assert kept.ledger.bill().tokens == 3
    kept.append([Tick(3.0, 4)])
    kept.close()
    assert open_ledger(path).bill().tokens == 7


FULL = """
import resource, sys
from cluster.ledger import Tick, entry_line
from cluster.ledger_file import LedgerFile, open_ledger
file = LedgerFile(sys.argv[1])
file.append([Tick(1.0, 3)])
size = len(entry_line(Tick(1.0, 3)))
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))  # room for half a line
try:
    file.append([Tick(2.0, 4)])
except OSError:
    assert file.ledger.bill().tokens == 3, "it is not in memory"
    assert open(sys.argv[1]).read() == entry_line(Tick(1.0, 3)), "nor on the disk"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
file.append([Tick(3.0, 5)])
assert file.ledger.bill().tokens == open_ledger(sys.argv[1]).bill().tokens == 8
print("passed")
"""


def test_what_a_full_disk_does_not_take_is_in_neither_and_the_rest_goes_on(path):
    done = subprocess.run([sys.executable, "-c", FULL, path], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "passed\n"), done.stderr


def test_a_file_that_is_not_text_is_one_line(tmp_path):
    (tmp_path / "image").write_bytes(b"\xff\xd8\xff")
    for _ in range(2):
        with pytest.raises(ValueError, match="is not text"):  # and it is not kept from anyone afterwards
            LedgerFile(str(tmp_path / "image"))


def test_two_keepers_of_one_file_cannot_be(path):
    kept = LedgerFile(path)
    with pytest.raises(ValueError, match="another service keeps it"):
        LedgerFile(path)
    kept.close()
    LedgerFile(path).close()


def test_without_a_path_it_is_kept_in_memory():
    kept = LedgerFile()
    kept.append(ENTRIES)
    assert kept.ledger.bill().tokens == 2_000_000
    kept.close()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        LedgerFile(str(tmp_path / "file" / "costs.jsonl"))


def test_the_verb_prints_what_it_cost_beside_all_on_demand(path, capsys):
    from sterna import main

    kept = LedgerFile(path)
    kept.append(ENTRIES)
    assert main(["cluster", "ledger", path]) == 0
    out = capsys.readouterr().out
    assert "spot       m7i.4xlarge" in out
    assert "2,000,000 tokens served; $0.300 per million; $1.000 had all been on demand; 0.30 of the all-on-demand cost" in out
    assert main(["cluster", "ledger", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dollars_per_million_tokens"] == 0.3
    kept.close()


def test_the_last_hours_alone(path):
    kept = LedgerFile(path)
    kept.append([*ENTRIES[:3], Tick(3600.0, 5), Tick(7200.0, 6)])
    kept.close()
    last = ledger(LedgerConfig(path=path, hours=1.0)).bill
    assert (last.dollars, last.tokens) == (pytest.approx(0.3), 6)


def test_what_is_no_ledger_is_one_line(tmp_path, capsys):
    from sterna import main

    assert main(["cluster", "ledger", str(tmp_path / "none")]) == 2
    (tmp_path / "other").write_text("hello\n")
    assert main(["cluster", "ledger", str(tmp_path / "other")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "cannot be read" in lines[0]
    assert "line 1: is no entry of a ledger" in lines[1]
