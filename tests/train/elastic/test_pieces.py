from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import fs as arrow_fs

from train.elastic.parts import StoredParts, write_part
from train.elastic.pieces import Held, Piece, load, pieces_of_optimizer, snapshot


def test_an_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path: Path):
    def fresh():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)

    def steps(model, optimizer, count):
        for number in range(count):
            model(torch.full((2, 3), float(number))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = fresh()
    steps(model, optimizer, 3)
    for rank in range(3):
        fragments = snapshot(pieces_of_optimizer(model.named_parameters(), optimizer), rank, 3)
        write_part(arrow_fs.LocalFileSystem(), str(tmp_path / f"{rank}.safetensors"), fragments)
    again, other = fresh()
    load(pieces_of_optimizer(again.named_parameters(), other), StoredParts(str(tmp_path)))
    steps(model, optimizer, 2)
    steps(again, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_what_is_held_in_memory_is_read_back_after_more_steps():
    weight, state = torch.arange(4.0), {"exp_avg": torch.ones(4), "step": 3}
    pieces = [Piece("w", 0, 4, weight, 0, state, scalars_on=None)]
    held = Held(snapshot(pieces))
    weight.zero_()
    state["exp_avg"].zero_()
    state["step"] = 9
    load(pieces, held)
    assert weight.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert state["exp_avg"].tolist() == [1.0] * 4
    assert state["step"] == 3
    with pytest.raises(ValueError, match="w: elements 2 to 6 of its weight are not held"):
        held.read("w", "weight", 2, 4)


def test_what_all_hold_is_written_once():
    weight = torch.arange(10.0)
    pieces = [Piece("w", 0, 10, weight, 0, {}, shared=True)]
    written = [f for rank in range(3) for f in snapshot(pieces, rank, 3)]
    assert np.concatenate([f.values for f in written]).tolist() == weight.tolist()
