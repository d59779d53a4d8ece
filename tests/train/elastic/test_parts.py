from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs as arrow_fs
from safetensors.torch import load_file

from train.elastic.parts import StoredParts, write_part
from train.elastic.pieces import Piece, load, snapshot


def cuts(numbers: list[int], size: int) -> list[tuple[int, int]]:
    """Stretches that cover `size` elements, cut at the numbers."""
    marks = sorted({0, size, *(n % size for n in numbers)})
    return list(pairwise(marks))


@given(st.integers(1, 40), st.lists(st.integers(0, 100), max_size=5), st.lists(st.integers(0, 100), max_size=5), st.data())
def test_any_cut_of_a_parameter_is_read_in_any_other(tmp_path_factory, size, written, asked, data):
    folder = tmp_path_factory.mktemp("parts")
    weight, moment = torch.randn(size), torch.randn(size)
    for number, (start, end) in enumerate(cuts(written, size)):
        offset = data.draw(st.integers(0, 3))  # where the stretch lies in what its worker holds
        held = [torch.cat([torch.zeros(offset), t[start:end], torch.zeros(2)]) for t in (weight, moment)]
        piece = Piece("a/b.c", start, end - start, held[0], offset, {"exp_avg": held[1], "step": torch.tensor(7.0)})
        write_part(arrow_fs.LocalFileSystem(), str(folder / f"{number}.safetensors"), snapshot([piece]))
    parts = StoredParts(str(folder))
    for start, end in cuts(asked, size):
        state: dict = {}
        target = torch.zeros(end - start)
        load([Piece("a/b.c", start, end - start, target, 0, state)], parts)
        assert torch.equal(target, weight[start:end])
        assert torch.equal(state["exp_avg"], moment[start:end])
        assert state["step"] == 7.0


def test_a_part_is_a_safetensors_file(tmp_path: Path):
    write_part(arrow_fs.LocalFileSystem(), str(tmp_path / "p.safetensors"), snapshot([Piece("w", 2, 3, torch.arange(9.0), 4, {})]))
    assert {name: values.tolist() for name, values in load_file(tmp_path / "p.safetensors").items()} == {"weight/2/w": [4.0, 5.0, 6.0]}


def test_a_hole_and_a_strange_file_are_told_in_one_line(tmp_path: Path):
    write_part(arrow_fs.LocalFileSystem(), str(tmp_path / "p.safetensors"), snapshot([Piece("w", 2, 3, torch.arange(9.0), 4, {})]))
    with pytest.raises(ValueError, match="has no weight of w from element 5 on"):
        StoredParts(str(tmp_path)).read("w", "weight", 3, 4)
    (tmp_path / "q.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match="is no part of a checkpoint"):
        StoredParts(str(tmp_path))
