"""Blocks as units of the search: what several matrices become together, where some of them may go together. Pure.

Promise: a unit's candidates are worth having (none is worse than another in both cost and harm), and `apart` gives for any of them what
each matrix becomes; costs and harms add up inside a unit as they do between matrices. Price: one small knapsack per unit and drop.
Source: a multiple-choice knapsack whose groups are themselves solved ones loses nothing but the rounding of costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from train.compress.knapsack import frontier
from train.compress.search import Candidate, Objective

__all__ = ["Drop", "apart", "joined"]

_BETWEEN = "/"
_CELLS = 256
"""Costs within a unit are told apart down to this share of their range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """Matrices that may go together."""

    option: str
    matrices: tuple[str, ...]
    harm: float
    """Nats per token: the KL that was measured without them."""
    bytes: int
    """What is still stored of them."""
    seconds: float


def joined(unit: str, matrices: Mapping[str, Sequence[Candidate]], drops: Sequence[Drop], objective: Objective) -> list[Candidate]:
    """The candidates of the unit called `unit`, whose `matrices` have these candidates each; at most one drop is taken."""
    found = [
        Candidate(
            matrix=unit,
            option=_BETWEEN.join(drop.option if drop and name in drop.matrices else chosen[name].option for name in matrices),
            bytes=sum(each.bytes for each in chosen.values()) + (drop.bytes if drop else 0),
            seconds=sum(each.seconds for each in chosen.values()) + (drop.seconds if drop else 0.0),
            harm=sum(each.harm for each in chosen.values()) + (drop.harm if drop else 0.0),
            reason=f"of which {drop.harm:.1e} {drop.option}, measured alone" if drop else "its matrices' harms added up",
        )
        for drop in (None, *drops)
        for chosen in _combinations({name: each for name, each in matrices.items() if not (drop and name in drop.matrices)}, objective)
    ]
    return _worth_having(found, objective)


def apart(plan: Mapping[str, str], units: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Matrix -> option of a plan in which the `units` (name -> matrices) stand for their matrices.

    >>> apart({"embed": "int8", "block": "int4/keep"}, {"block": ["q", "k"]})
    {'embed': 'int8', 'q': 'int4', 'k': 'keep'}
    """
    found: dict[str, str] = {}
    for name, chosen in plan.items():
        found |= dict(zip(units[name], chosen.split(_BETWEEN), strict=True)) if name in units else {name: chosen}
    return found


def _combinations(matrices: Mapping[str, Sequence[Candidate]], objective: Objective) -> Iterator[dict[str, Candidate]]:
    if not matrices:
        yield {}
        return
    cost = _cost(objective)
    groups = list(matrices.values())
    for picked in frontier([[(cost(each), each.harm) for each in group] for group in groups], cells=_CELLS).choices.tolist():
        yield {name: group[index] for name, group, index in zip(matrices, groups, picked, strict=True)}


def _worth_having(found: Sequence[Candidate], objective: Objective) -> list[Candidate]:
    """From the costliest to the cheapest."""
    cost, kept = _cost(objective), list[Candidate]()
    for each in sorted(found, key=lambda each: (cost(each), each.harm)):
        if not kept or each.harm < kept[-1].harm:
            kept.append(each)
    return kept[::-1]


def _cost(objective: Objective) -> attrgetter[float]:
    return attrgetter("bytes" if objective == "bytes" else "seconds")
