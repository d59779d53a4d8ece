"""A picture is written whole, or refused in one line; its canvas is gone either way."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from cluster.plot import picture


@pytest.fixture(autouse=True)
def _no_canvas_is_left():
    before = plt.get_fignums()
    yield
    assert plt.get_fignums() == before


@pytest.mark.parametrize(("name", "begins"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml")])
def test_a_picture_is_written(tmp_path, name, begins):
    with picture(str(tmp_path / name), 1, 2, figsize=(4, 2)) as (figure, (left, right)):
        left.plot([1, 2], [3, 4])
        right.plot([1, 2], [4, 3])
        figure.suptitle("two curves")
    assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize("name", ["no/such/folder/p.png", "p.xyz"])
def test_what_cannot_be_written_is_one_line(tmp_path, name):
    path = str(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be written") as refused, picture(path, 1, 1):
        pass
    assert str(refused.value).startswith(f"plot: {path} ")
    assert "\n" not in str(refused.value)


def test_a_mistake_in_the_drawing_is_not_taken_for_one_of_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"^of the drawing$"), picture(str(tmp_path / "p.png"), 1, 1):
        raise ValueError("of the drawing")
    assert not (tmp_path / "p.png").exists()
