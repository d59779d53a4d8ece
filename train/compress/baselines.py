"""What others do at the same size: one option everywhere, or one change after another in order of a harm that was measured alone. Pure.

Promise: plans over the same candidates as the search's, of at most the bytes that are asked for. Price: none here; the harms of
the greedy ones cost a pass for every option of every matrix, which is what the gradients of `scores.py` spare.
Source: accumulation in order of first divergent tokens, arXiv 2311.01544; guided by perplexity, what most of the literature does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from train.compress.search import Candidate

__all__ = ["accumulated", "in_order_of_harm", "per_byte", "uniform"]

Harms = Mapping[tuple[str, str], float]
"""(matrix, option) -> how much worse the model gets by that alone, in any unit; keep may be left out: it does no harm."""
Rank = Callable[[float, float, int], float]
"""(harm before the change, after it, bytes saved) -> what the next change has least of."""


def in_order_of_harm(before: float, after: float, saved: int) -> float:
    """The paper's: the least harmful change first, whatever it saves."""
    return after


def per_byte(before: float, after: float, saved: int) -> float:
    """The stronger one: the change that adds least harm for each byte it saves."""
    return (after - before) / saved


def uniform(candidates: Sequence[Candidate], option: str) -> dict[str, str]:
    """The option wherever it is offered, every other matrix kept."""
    offered = {c.matrix for c in candidates if c.option == option}
    return {c.matrix: option if c.matrix in offered else "keep" for c in candidates}


def accumulated(candidates: Sequence[Candidate], harms: Harms, limit: int, rank: Rank) -> dict[str, str]:
    """Changes taken one after another from keeping everything, by `rank`, until the plan has at most `limit` bytes.

    A matrix goes from one option to the next smaller one. Where nothing is left to take, the plan is larger than `limit`.

    >>> three = [Candidate(matrix="a", option=o, bytes=b, harm=0.0) for o, b in (("keep", 16), ("int8", 8), ("int4", 4))]
    >>> accumulated(three, {("a", "int8"): 0.1, ("a", "int4"): 0.7}, 9, in_order_of_harm)
    {'a': 'int8'}
    """
    rows = {matrix: _falling(candidates, matrix, harms) for matrix in dict.fromkeys(c.matrix for c in candidates)}
    at = dict.fromkeys(rows, 0)
    total = sum(row[0].bytes for row in rows.values())
    while total > limit:
        ahead = [(_next(rows[matrix], at[matrix], harms, rank), matrix) for matrix in rows if at[matrix] + 1 < len(rows[matrix])]
        if not ahead:
            break
        matrix = min(ahead)[1]
        at[matrix] += 1
        total += rows[matrix][at[matrix]].bytes - rows[matrix][at[matrix] - 1].bytes
    return {matrix: row[at[matrix]].option for matrix, row in rows.items()}


def _falling(candidates: Sequence[Candidate], matrix: str, harms: Harms) -> list[Candidate]:
    """The matrix' options from keep downwards, each smaller than the one before; of equal ones the least harmful."""
    own = sorted((c for c in candidates if c.matrix == matrix), key=lambda c: (-c.bytes, harms.get((matrix, c.option), 0.0)))
    start = next(index for index, c in enumerate(own) if c.option == "keep")
    kept = [own[start]]
    for candidate in own[start + 1 :]:
        if candidate.bytes < kept[-1].bytes:
            kept.append(candidate)
    return kept


def _next(row: Sequence[Candidate], now: int, harms: Harms, rank: Rank) -> float:
    before, after = row[now], row[now + 1]
    harm = harms.get((before.matrix, before.option), 0.0)
    return rank(harm, harms[after.matrix, after.option], before.bytes - after.bytes)
