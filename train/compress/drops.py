"""Blocks, and the attention or the MLP of a block, as what the search may leave out.

Promise: the harm of every drop is measured, alone, by a pass over the search's prompts; the plans with it are judged whole like any
other. A block that is left out is not in the folder, and config.json counts one less; of an attention or an MLP alone zeros stay in
the folder, as integers of 2 bits (transformers draws a matrix at random that it does not find), so these save bytes and no
time. Price: a pass from the block on for each. For layers built as Llama's are (see structure.py).
Sources: ShortGPT (arXiv 2403.03853) for blocks; Gromov et al. (2403.17887); attention or MLP alone: He et al. (2406.15786).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from train.compress.calibrate import CompressibleMatrix, matrices, weight_of
from train.compress.candidates import Variant, degraded
from train.compress.find import Offer, Seconds, true_harms
from train.compress.options import Option
from train.compress.probe import Probe
from train.compress.search import Candidate, Objective
from train.compress.shelf import Shelf
from train.compress.structure import Block, blocks_of
from train.compress.units import Drop, apart, joined

__all__ = ["OfferOfUnits", "with_drops"]

_HOPELESS = 0.5
"""Nats per token from which a drop is not offered."""


@dataclass(frozen=True, slots=True)
class OfferOfUnits(Offer):
    """An offer some of whose matrices are chosen for together."""

    units: Mapping[str, Sequence[str]]
    """Block -> its matrices; a block's option names theirs, in this order."""

    def weights(self, plan: Mapping[str, str]) -> dict[str, Tensor]:
        """Module -> [N, K] float32 of what the plan changes."""
        return Offer.weights(self, apart(plan, self.units))


def with_drops(
    offered: Offer, model: Any, probe: Probe, drops: Sequence[Option], *, objective: Objective, seconds: Seconds | None, shelf: Shelf
) -> OfferOfUnits:
    """`offered`, and the `drops` of every block of `model` that can bear one. ValueError for layers that are not built as Llama's."""
    blocks = blocks_of(model)
    variants = {name: dict(each) for name, each in offered.variants.items()}
    for drop in drops:
        for name in [name for block in blocks for name in _gone(block, drop)]:
            variants.setdefault(name, {})[drop.name] = degraded(weight_of(model, name), drop, None)
    without = {(block.name, drop.name): partial(_weights, _gone(block, drop), drop, variants) for block in blocks for drop in drops}
    harms = true_harms(probe, without, shelf, "drops", "compress: without a block")
    most = max(harms.get((block.name, "drop-block"), 0.0) for block in blocks)  # a model needs one block: this stays
    bearable = {pair: harm for pair, harm in harms.items() if harm < _HOPELESS and not (pair[1] == "drop-block" and harm == most)}
    candidates: dict[str, list[Candidate]] = {}
    for candidate in offered.candidates:
        candidates.setdefault(candidate.matrix, []).append(candidate)
    sizes, units = {matrix.name: matrix for matrix in matrices(model)}, dict[str, tuple[str, ...]]()
    for block in blocks:
        possible = [
            _drop(block, drop, harm, sizes, seconds) for drop in drops if (harm := bearable.get((block.name, drop.name))) is not None
        ]
        if possible:
            units[block.name] = block.matrices
            alone = {name: candidates.pop(name) for name in block.matrices}
            candidates[block.name] = joined(block.name, alone, possible, objective)
    return OfferOfUnits([each for group in candidates.values() for each in group], variants, units)


def _drop(block: Block, drop: Option, harm: float, sizes: Mapping[str, CompressibleMatrix], seconds: Seconds | None) -> Drop:
    """What is left of a block, or of a part of it, on disk and of its time: of a block nothing."""
    gone = _gone(block, drop)
    left = [] if drop.name == "drop-block" else [sizes[name] for name in gone]
    return Drop(
        option=drop.name,
        matrices=gone,
        harm=harm,
        bytes=sum(matrix.stored_bytes(drop) for matrix in left),
        seconds=sum(seconds(drop, matrix.rows, matrix.columns) for matrix in left) if seconds else 0.0,
    )


def _gone(block: Block, drop: Option) -> tuple[str, ...]:
    return {"drop-block": block.matrices, "drop-attention": block.attention, "drop-mlp": block.mlp}[drop.name]


def _weights(names: Sequence[str], drop: Option, variants: Mapping[str, Mapping[str, Variant]]) -> dict[str, Tensor]:
    return {name: variants[name][drop.name].dense for name in names}
