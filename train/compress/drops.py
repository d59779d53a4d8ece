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
from typing import Any

import numpy as np
from torch import Tensor

from cluster.console import progress
from train.compress.calibrate import matrices, weight_of
from train.compress.candidates import Variant, degraded
from train.compress.find import Offer, Seconds
from train.compress.options import Option
from train.compress.probe import Probe
from train.compress.search import Candidate, Objective
from train.compress.shelf import Pair, Shelf
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
    offered: Offer,
    model: Any,
    probe: Probe,
    drops: Sequence[Option],
    *,
    objective: Objective,
    seconds: Seconds | None,
    shelf: Shelf,
) -> OfferOfUnits:
    """`offered`, and the `drops` of every block of `model` that can bear one. ValueError for layers that are not built as Llama's."""
    blocks = {block.name: block for block in blocks_of(model)}
    variants = {name: dict(each) for name, each in offered.variants.items()}
    for block in blocks.values():
        for each in drops:
            for name in _gone(block, each):
                variants.setdefault(name, {})[each.name] = degraded(weight_of(model, name), each, None)
    harms = _harms(probe, blocks, variants, drops, shelf)
    stays = max(blocks, key=lambda name: harms.get((name, "drop-block"), 0.0))  # a model needs one, and this is missed most
    told = {matrix.name: matrix for matrix in matrices(model)}
    candidates: dict[str, list[Candidate]] = {}
    for candidate in offered.candidates:
        candidates.setdefault(candidate.matrix, []).append(candidate)
    units: dict[str, tuple[str, ...]] = {}
    for name, block in blocks.items():
        possible = [
            Drop(
                option=each.name,
                matrices=_gone(block, each),
                harm=harms[name, each.name],
                bytes=0 if each.name == "drop-block" else sum(told[gone].stored_bytes(each) for gone in _gone(block, each)),
                seconds=_seconds(seconds, each, [(told[gone].rows, told[gone].columns) for gone in _gone(block, each)]),
            )
            for each in drops
            if harms[name, each.name] < _HOPELESS and (name, each.name) != (stays, "drop-block")
        ]
        if possible:
            units[name] = block.matrices
            candidates[name] = joined(name, {each: candidates.pop(each) for each in block.matrices}, possible, objective)
    return OfferOfUnits([each for group in candidates.values() for each in group], variants, units)


def _gone(block: Block, drop: Option) -> tuple[str, ...]:
    return {"drop-block": block.matrices, "drop-attention": block.attention, "drop-mlp": block.mlp}[drop.name]


def _seconds(seconds: Seconds | None, drop: Option, shapes: Sequence[tuple[int, int]]) -> float:
    if seconds is None or drop.name == "drop-block":
        return 0.0
    return sum(seconds(drop, rows, columns) for rows, columns in shapes)


def _harms(
    probe: Probe, blocks: Mapping[str, Block], variants: Mapping[str, Mapping[str, Variant]], drops: Sequence[Option], shelf: Shelf
) -> dict[Pair, float]:
    """(block, drop) -> the true mean KL, alone."""
    key = [probe.reference.prompts, probe.reference.completions]
    found = shelf.read("drops", key)
    with progress("compress: without a block", len(blocks) * len(drops), "passes") as advance:
        for name, block in blocks.items():
            for each in drops:
                if (name, each.name) not in found:
                    traces = probe.traces({gone: variants[gone][each.name].dense for gone in _gone(block, each)})
                    found[name, each.name] = float(np.concatenate([trace.kl for trace in traces]).mean())
                    shelf.write("drops", key, found)
                advance()
    return found
