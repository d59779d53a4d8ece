"""The smallest plan within a divergence budget: predicted harms add up, a knapsack chooses, joint passes decide. Pure.

Promise: with the same candidates and the same judge, a looser budget never gives a larger plan (the plans to judge do not depend
on the budget, only the way among them does), and every plan that is returned as met was judged whole. Price: `levels` joint
passes, one more per swap tried, and none that was judged before: `known` takes up an interrupted search.

Why sums: what small changes of different matrices do to the logits is nearly uncorrelated, so their KLs add up (measured on a
6.5M Llama, 4 bits everywhere: the whole is 0.97 of the sum of 42 parts, 3 bits: 1.17). The parts are therefore taken one by one
against the original, never as differences from a plan: there the cross terms are the noise of this very sample of prompts, and
choosing among them is choosing noise. What sums get wrong is a common factor, and the joint passes find that.
Source: multiple-choice knapsacks for bit widths, as in HAWQ-V2 (arXiv 1911.03852); flips instead of perplexity: arXiv 2311.01544.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from train.compress.knapsack import Frontier, frontier

__all__ = ["Candidate", "Found", "Judged", "Objective", "Step", "at_bytes", "plan_key", "search"]

Objective = Literal["bytes", "latency"]
Plan = Mapping[str, str]
"""Matrix name -> option name, every matrix named."""
_LEAST_KL, _MOST_KL = 1e-6, 2.0
"""Nats per token: predicted harms between which plans are told apart; below the first no token moves, beyond the last none is left."""
_MOVES = 48
"""Exchanges of one matrix that are looked at, the best by harm per cost, cheaper and dearer each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One matrix in one option."""

    matrix: str
    option: str
    bytes: int
    """On disk, with scales, masks and shapes."""
    harm: float
    """Nats per token: the KL that this option of this matrix alone is predicted, or was measured, to cause."""
    seconds: float = 0.0
    """Per step of the engine; what the objective "latency" adds up."""
    reason: str = ""
    """Where the harm comes from, such as "predicted from gradients" or "measured alone"."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A plan on the search's prompts, all its matrices changed at once."""

    figures: Mapping[str, float]
    """Metric -> the plain figure: flips, kl, …."""
    bounds: Mapping[str, float]
    """Metric -> what the certificate's upper bound on other prompts is expected to stay below (see `margin.py`)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One judged plan on the way."""

    why: str
    key: str
    bytes: int
    seconds: float
    predicted: float
    """Nats per token: the sum of the harms."""
    judged: Judged
    within: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The best plan, and how it was come by."""

    plan: dict[str, str]
    reasons: dict[str, str]
    """Matrix -> why this option."""
    met: bool
    """Whether the plan is within the budget on the search's prompts; if not, it is the least harmful there is."""
    bytes: int
    seconds: float
    predicted: float
    judged: Judged
    trail: tuple[Step, ...]
    known: dict[str, Judged] = field(default_factory=dict)
    """Every plan that was judged, by `plan_key`."""

    @property
    def passes(self) -> int:
        """Joint passes that this search asked for."""
        return len({step.key for step in self.trail})


def plan_key(plan: Plan) -> str:
    """What tells plans apart, whatever the order of their matrices.

    >>> plan_key({"b": "int4", "a": "keep"}) == plan_key({"a": "keep", "b": "int4"})
    True
    """
    return ",".join(f"{matrix}={plan[matrix]}" for matrix in sorted(plan) if plan[matrix] != "keep")


def search(
    candidates: Sequence[Candidate],
    judge: Callable[[dict[str, str]], Judged],
    budget: Mapping[str, float],
    *,
    objective: Objective = "bytes",
    levels: int = 10,
    swaps: int = 0,
    known: Mapping[str, Judged] | None = None,
) -> Found:
    """The cheapest plan whose bounds are all within `budget` (metric -> limit), among one candidate per matrix.

    `judge` is asked for whole plans; `levels` halvings tell 2^levels plans of the frontier apart. Raises ValueError for a budget
    that the judge has no figure for.
    """
    asking = _Asking(candidates, judge, dict(known or {}), budget)
    options = _priced(candidates, objective)
    ladder = _Ladder.of(options, levels)
    best, floor = _bisected(asking, ladder)
    if best is None:
        return asking.found(ladder.plans[0], met=False)
    return asking.found(_swapped(asking, options, best, floor, swaps), met=True)


def at_bytes(candidates: Sequence[Candidate], limit: int) -> dict[str, str] | None:
    """The plan of least predicted harm in at most `limit` bytes; None when nothing is that small."""
    options = _priced(candidates, "bytes")
    found = frontier([[(each.cost, each.harm) for each in group] for group in options.values()])
    index = found.within_cost(limit)
    return None if index is None else _plan(options, found, index)


class _Priced(NamedTuple):
    option: str
    cost: float
    harm: float


def _priced(candidates: Sequence[Candidate], objective: Objective) -> dict[str, list[_Priced]]:
    """Matrix -> its options with what the objective adds up."""
    groups: dict[str, list[_Priced]] = {}
    for each in candidates:
        groups.setdefault(each.matrix, []).append(_Priced(each.option, each.bytes if objective == "bytes" else each.seconds, each.harm))
    assert len({(c.matrix, c.option) for c in candidates}) == len(candidates), "a candidate is given twice"
    return groups


def _plan(options: Mapping[str, Sequence[_Priced]], found: Frontier, index: int) -> dict[str, str]:
    return {matrix: group[choice].option for (matrix, group), choice in zip(options.items(), found.choices[index], strict=True)}


@dataclass(frozen=True, slots=True)
class _Ladder:
    """Plans from the least harmful to the cheapest, at even steps of the logarithm of the predicted harm, whatever the budget."""

    plans: list[dict[str, str]]
    costs: list[float]

    @classmethod
    def of(cls, options: Mapping[str, Sequence[_Priced]], levels: int) -> _Ladder:
        found = frontier([[(each.cost, each.harm) for each in group] for group in options.values()])
        low, high = (math.log(min(max(harm, _LEAST_KL), _MOST_KL)) for harm in (found.harms[0], found.harms[-1]))
        rungs = [found.within_harm(float(limit)) for limit in np.exp(np.linspace(low, high, 2**levels + 1)[1:]) * (1 + 1e-9)]
        distinct = sorted({0, *(index for index in rungs if index is not None)})
        return cls([_plan(options, found, index) for index in distinct], [float(found.costs[index]) for index in distinct])


class _Asking:
    """The judge with its memory, and what was asked of it."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        judge: Callable[[dict[str, str]], Judged],
        known: dict[str, Judged],
        budget: Mapping[str, float],
    ) -> None:
        self._of = {(c.matrix, c.option): c for c in candidates}
        self._judge, self._known, self._budget = judge, known, budget
        self._trail: list[Step] = []

    def within(self, plan: dict[str, str], why: str) -> bool:
        """Whether the plan keeps to the budget; judged unless that is known."""
        key = plan_key(plan)
        if key not in self._known:
            self._known[key] = self._judge(plan)
        judged = self._known[key]
        if missing := sorted(set(self._budget) - set(judged.bounds)):
            raise ValueError(f"budget: no metric {missing[0]!r}; give one of {', '.join(sorted(judged.bounds))}")
        within = all(judged.bounds[metric] <= limit for metric, limit in self._budget.items())
        self._trail.append(Step(why, key, self.bytes(plan), self.seconds(plan), self.harm(plan), judged, within))
        return within

    def bytes(self, plan: Plan) -> int:
        return sum(self._of[pair].bytes for pair in plan.items())

    def seconds(self, plan: Plan) -> float:
        return sum(self._of[pair].seconds for pair in plan.items())

    def harm(self, plan: Plan) -> float:
        return sum(self._of[pair].harm for pair in plan.items())

    def found(self, plan: dict[str, str], *, met: bool) -> Found:
        judged = self._known[plan_key(plan)]
        reasons = {pair[0]: self._reason(self._of[pair]) for pair in plan.items()}
        totals = self.bytes(plan), self.seconds(plan), self.harm(plan)
        return Found(plan, reasons, met, *totals, judged, tuple(self._trail), self._known)

    def _reason(self, chosen: Candidate) -> str:
        others = [c for c in self._of.values() if c.matrix == chosen.matrix and c.bytes < chosen.bytes and c.harm > chosen.harm]
        if not others:
            return f"{chosen.option}: {chosen.harm:.1e} nats, {chosen.reason}; nothing smaller is offered"
        next_one = min(others, key=lambda c: (c.harm - chosen.harm) / (chosen.bytes - c.bytes))
        price = (next_one.harm - chosen.harm) / (chosen.bytes - next_one.bytes) * 1024
        return f"{chosen.option}: {chosen.harm:.1e} nats, {chosen.reason}; {next_one.option} would add {price:.1e} nats per KiB saved"


def _bisected(asking: _Asking, ladder: _Ladder) -> tuple[dict[str, str] | None, float]:
    """The cheapest plan found within the budget, and the cost of the dearest one beyond it: no better than that is looked for.

    Halving the same ladder for every budget is what makes bytes monotone: two budgets part where the looser one admits a plan that
    the tighter one does not, and from there on one looks at cheaper plans only, the other at dearer ones only.
    """
    low, high = 0, len(ladder.plans)  # everything below `low` is within the budget, from `high` on nothing is known to be
    if not asking.within(ladder.plans[0], "the least harmful"):
        return None, ladder.costs[0]
    while high - low > 1:
        middle = (low + high) // 2
        if asking.within(ladder.plans[middle], "halving"):
            low = middle
        else:
            high = middle
    return ladder.plans[low], ladder.costs[high] if high < len(ladder.plans) else -math.inf


def _swapped(asking: _Asking, options: Mapping[str, Sequence[_Priced]], plan: dict[str, str], floor: float, tries: int) -> dict[str, str]:
    """`plan` after exchanges that make it cheaper and stay within the budget; none goes below the cost `floor` (see `_bisected`)."""
    tried: set[str] = set()
    while tries > 0:
        proposals = ({**plan, **dict(swap)} for _, swap in _swaps(options, plan, floor) if plan_key({**plan, **dict(swap)}) not in tried)
        proposal = next(proposals, None)
        if proposal is None:
            break
        tried.add(plan_key(proposal))
        tries -= 1
        if asking.within(proposal, "swap"):
            plan = proposal
    return plan


def _swaps(options: Mapping[str, Sequence[_Priced]], plan: Plan, floor: float) -> list[tuple[float, tuple[tuple[str, str], ...]]]:
    """(added harm, (matrix, option) to exchange): one matrix made cheaper, or one cheaper for another dearer, least harm first."""
    now = {(matrix, each.option): each for matrix, group in options.items() for each in group}
    total = sum(now[pair].cost for pair in plan.items())
    cheaper, dearer = [], []
    for matrix, group in options.items():
        chosen = now[matrix, plan[matrix]]
        for each in group:
            move = (each.cost - chosen.cost, each.harm - chosen.harm, (matrix, each.option))
            if move[0] < 0:
                cheaper.append(move)
            elif move[0] > 0 and move[1] < 0:
                dearer.append(move)
    cheaper = sorted(cheaper, key=lambda move: move[1] / -move[0])[:_MOVES]
    dearer = sorted(dearer, key=lambda move: move[1] / move[0])[:_MOVES]
    moves: list[tuple[float, float, tuple[tuple[str, str], ...]]] = [(cost, harm, (target,)) for cost, harm, target in cheaper]
    moves += [(down[0] + up[0], down[1] + up[1], (down[2], up[2])) for down in cheaper for up in dearer if down[2][0] != up[2][0]]
    return sorted((harm, targets) for cost, harm, targets in moves if cost < 0 and total + cost > floor)
