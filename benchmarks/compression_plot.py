"""The compression comparison as pictures: what each component bears, and sparsity in rounds.

    python -m benchmarks.compression_plot --figures runs/compression.json --shapes docs/images/components.png
    python -m benchmarks.compression_plot --rounds runs/compression_rounds.json --by-round docs/images/rounds.png

Promise: nothing is measured here. Price: seconds; matplotlib.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.plot import picture

__all__ = ["components", "draw_rounds", "draw_shapes", "round_lines"]

_COLOURS = {"uniform": "#9aa5b1", "fdt": "#2a6f97", "kl": "#6a994e", "scores": "#e07a5f"}
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def components(shapes: Mapping[str, Mapping[str, float]], metric: str) -> tuple[list[str], list[int], NDArray[np.float64]]:
    """(components, sparsities, [component, sparsity] of `metric`), the kinds of component together and their layers in order.

    >>> components({"model.layers.0.mlp.up_proj|50": {"flips": 0.5}, "model.layers.0.self_attn.q_proj|50": {"flips": 0.25}}, "flips")[0]
    ['q 0', 'up 0']
    """
    cells = {tuple(key.split("|")): row[metric] for key, row in shapes.items()}
    names = sorted({name for name, _ in cells}, key=_place)
    percents = sorted({int(percent) for _, percent in cells})
    table = np.array([[cells.get((name, str(percent)), np.nan) for percent in percents] for name in names])
    return [f"{name.split('.')[-1].removesuffix('_proj')} {_place(name)[1]}" for name in names], percents, table


def _place(name: str) -> tuple[int, int]:
    """(which kind of component, which layer)."""
    kind = name.split(".")[-1]
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER), next(int(part) for part in name.split(".") if part.isdigit())


def round_lines(rounds: Sequence[Mapping[str, Any]], metric: str) -> dict[str, tuple[list[float], list[float]]]:
    """Guide -> (per cent of zeros, the metric) along its rounds, each pruned and then recovered."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for row in rounds:
        at, values = lines.setdefault(row["guide"], ([], []))
        at += [100 * row["sparsity"]] * 2
        values += [row["before"][metric], row["after"][metric]]
    return lines


def draw_shapes(shapes: Mapping[str, Mapping[str, float]], file: str) -> None:
    """Two maps of components by sparsity: the mean length until the first divergent token, and the share of divergent ones."""
    panels = (("fdt_mean", 1.0, "mean FDT, tokens", "viridis"), ("flips", 100.0, "divergent tokens, %", "magma_r"))
    with picture(file, 1, 2, figsize=(6.9, 7.2), layout="constrained", sharey=True) as (_, axes):
        for axis, (metric, scale, title, colours) in zip(axes, panels, strict=True):
            names, percents, table = components(shapes, metric)
            axis.imshow(scale * table, aspect="auto", cmap=colours)
            axis.set_xticks(range(len(percents)), [f"{percent} %" for percent in percents], fontsize=8)
            axis.set_yticks(range(len(names)), names, fontsize=6)
            axis.set_xlabel("zeros in this component alone", fontsize=8)
            axis.set_title(title, fontsize=9)
            middle = np.nanmin(table) + 0.5 * np.ptp(table[np.isfinite(table)])
            for (row, column), value in np.ndenumerate(table):
                ink = "black" if (value > middle) == (metric == "fdt_mean") else "white"
                axis.text(column, row, f"{scale * value:.1f}", ha="center", va="center", fontsize=5.5, color=ink)


def draw_rounds(found: Mapping[str, Any], file: str) -> None:
    """Perplexity, mean FDT and divergent tokens along the rounds of every guide."""
    panels = (
        ("perplexity", 1.0, "perplexity on held-out text"),
        ("fdt_mean", 1.0, "mean FDT, tokens"),
        ("flips", 100.0, "divergent tokens, %"),
    )
    with picture(file, 1, 3, figsize=(9.5, 3.1), layout="constrained") as (_, axes):
        for axis, (metric, scale, title) in zip(axes, panels, strict=True):
            for guide, (at, values) in round_lines(found["rounds"], metric).items():
                scaled = [scale * value for value in values]
                axis.plot(at, scaled, color=_COLOURS[guide], lw=1.2, label=guide)
                axis.plot(at[1::2], scaled[1::2], "o", color=_COLOURS[guide], ms=4)
            axis.set_xlabel("zeros in the linear layers, %", fontsize=8)
            axis.set_title(title, fontsize=9)
        axes[0].axhline(found["original"]["perplexity"], color="#14213d", lw=0.8, ls=":")
        axes[0].legend(title="pruned, then recovered (dot)", fontsize=7, title_fontsize=7)


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=Path("runs/compression.json"))
    parser.add_argument("--rounds", type=Path, default=Path("runs/compression_rounds.json"))
    parser.add_argument("--shapes", help="picture of what each component bears")
    parser.add_argument("--by-round", help="picture of sparsity in rounds")
    options = parser.parse_args()
    if options.shapes:
        draw_shapes(json.loads(options.figures.read_text())["shapes"], options.shapes)
    if options.by_round:
        draw_rounds(json.loads(options.rounds.read_text()), options.by_round)


if __name__ == "__main__":
    main()
