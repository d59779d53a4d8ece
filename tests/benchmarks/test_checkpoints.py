from __future__ import annotations

from benchmarks.checkpoints import table


def test_the_table_says_what_was_measured():
    found = {
        "save": {"blocked": 0.1, "committed": 0.5, "deepspeed": 0.9, "asked": 0.0002},
        "convert_s": 12.0,
        **{f"{kind}_{n}": {"read": 0.25, "loss": 9.1234567} for kind in ("ours", "universal") for n in (1, 2)},
        "bytes": {"ours": 12_000_000, "deepspeed": 14_000_000, "universal": 13_000_000},
    }
    lines = table(found).splitlines()
    assert lines[1].split() == ["the", "loop", "stands", "still", "0.10", "s", "0.90", "s"]
    assert lines[3].endswith("not needed            12.0 s")
    assert lines[6].split() == ["MB", "12", "14", "and", "13"]
    assert lines[-1].endswith("in 0.20 ms a step")
