"""A picture in a file of one's own: what `--plot` writes.

Promise: it is there whole and its canvas closed when the block ends, or one line says why it cannot be written. Price: matplotlib,
imported here alone and only when a picture is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["picture"]

_DPI = 110


@contextmanager
def picture(path: str, rows: int, columns: int, **layout: Any) -> Iterator[tuple[Any, Any]]:
    """(figure, its axes as matplotlib's `subplots` gives them) to draw on; written to `path`, PNG or SVG by its suffix.

    Raises ValueError where it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, **layout)
    try:
        yield figure, axes
        _write(figure, path)
    finally:
        plt.close(figure)


def _write(figure: Any, path: str) -> None:
    try:
        figure.savefig(Path(path), dpi=_DPI)
    except (OSError, ValueError) as error:
        raise ValueError(f"plot: {path} cannot be written ({error})") from None
