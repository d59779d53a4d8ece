from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from train.files import read_whole


def test_a_file_is_read_whole_and_unpacked_by_its_name(tmp_path: Path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"terns"))
    assert read_whole(str(tmp_path / "a.jsonl.gz"), wanted="text") == b"terns"
    assert read_whole(str(tmp_path / "a.jsonl.gz"), wanted="text", packed=False) == (tmp_path / "a.jsonl.gz").read_bytes()


@pytest.mark.parametrize("damage", ["no file", "a folder", "not packed", "cut short"])
def test_what_cannot_be_read_is_one_line(tmp_path: Path, damage: str):
    place = tmp_path / "a.jsonl.gz"
    if damage == "a folder":
        place.mkdir()
    elif damage != "no file":
        place.write_bytes(b"\x1f\x8bnothing" if damage == "not packed" else gzip.compress(b"terns" * 99)[:-9])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: (no such file; give text|cannot be read)") as caught:
        read_whole(str(place), wanted="text")
    assert "\n" not in str(caught.value)
