"""The smallest plan within a budget: the search proposes, and held-out prompts have the last word.

Promise: a plan that passes was tested on held-out prompts, and with 95 % confidence its divergence on fresh prompts is within the
budget, however many plans were tested for that: they are tested from the safest to the boldest, an order that the search has
fixed, and the first that fails ends it. Price: find.py, and at most four passes over the held-out prompts.
Source: fixed-sequence testing (Maurer et al., 1995), as in "Learn then Test" (arXiv 2110.01052).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from cluster.console import progress, say
from cluster.storage import digest_of
from train.compress.calibrate import matrices
from train.compress.certify import judge_budget, upper_bounds
from train.compress.choose import Choice, calibrated, row_of
from train.compress.config import CompressConfig
from train.compress.drops import OfferOfUnits, with_drops
from train.compress.find import Judging, Offer, find, offer, probe_of
from train.compress.options import Option
from train.compress.original import Original
from train.compress.probe import Probe
from train.compress.search import Found, Judged
from train.compress.shelf import Shelf
from train.compress.store import Store
from train.compress.units import apart

__all__ = ["budgeted", "ladder", "settled"]

_TESTED = 4
"""Plans that are tested on the held-out prompts at most."""
_WON_BACK = 1.5
"""How many times the budget a plan may diverge by that is to be recovered."""
Plan = dict[str, str]


def budgeted(config: CompressConfig, model: Any, digest: str, original: Original, store: Store) -> Choice:
    """The smallest (or fastest) plan for `model`, whose contents have the `digest`, that keeps to the budget, or the best there is."""
    probe, choices, texts = probe_of(model, original.references["search"]), config.choices, original.calibration
    shelf, timer = Shelf(store, [digest, digest_of(texts)]), _timer(config)
    alone, drops = ([option for option in choices if option.is_drop == is_drop] for is_drop in (False, True))
    offered = offer(model, probe, alone, calibrated(model, alone, texts), seconds=timer, seed=config.seed, shelf=shelf)
    if drops:
        offered = with_drops(offered, model, probe, drops, objective=config.objective, seconds=timer, shelf=shelf)
    with _judging(config, model, probe) as judging:
        result = _found(config, offered, judging, original, store, config.bounds)
        plan, all_passed = _tested(config, Probe(probe.model, original.references["held_out"]), result, offered)
        choice = _choice(config, model, offered, result, plan)
        if config.recover and result.met and all_passed:  # after one that failed nothing bolder may be tested
            bolder = _found(config, offered, judging, original, store, {name: _WON_BACK * bound for name, bound in config.bounds.items()})
            choice = replace(choice, bolder=_choice(config, model, offered, bolder, bolder.plan))
    return replace(choice, passes=probe.passes + (judging.passes if judging is not probe else 0.0))


def _choice(config: CompressConfig, model: Any, offered: Offer, result: Found, plan: Plan) -> Choice:
    units = offered.units if isinstance(offered, OfferOfUnits) else {}
    unit_of = {matrix: unit for unit, names in units.items() for matrix in names}
    taken = {name: offered.variants[name][option] for name, option in apart(plan, units).items() if option != "keep"}
    reasons = {matrix.name: _reason(result, plan, unit_of.get(matrix.name, matrix.name)) for matrix in matrices(model)}
    rows = [row_of(matrix, taken.get(matrix.name), reasons[matrix.name]) for matrix in matrices(model)]
    return Choice(variants=taken, rows=rows, trail=_trail(result, plan, config.bounds))


def _timer(config: CompressConfig) -> Callable[[Option, int, int], float] | None:
    """Seconds that a matrix takes of a step for one sequence, where that is what is made small."""
    if config.objective == "bytes":
        return None
    from train.compress.timing import seconds

    return lambda option, rows, columns: seconds(option, rows, columns)[0]


@contextmanager
def _judging(config: CompressConfig, model: Any, probe: Probe) -> Iterator[Any]:
    """Who judges whole plans: `probe`, or actors of the cluster where more than one worker is asked for."""
    if config.num_workers == 1:
        yield probe
        return
    from cluster.runtime import attached
    from train.compress.spread import Spread

    with attached():
        spread = Spread(model, probe.reference, config.num_workers)
        try:
            yield spread
        finally:
            spread.close()


def _found(config: CompressConfig, offered: Offer, probe: Judging, original: Original, store: Store, bounds: Mapping[str, float]) -> Found:
    """The search's result, every judged plan kept as soon as it is judged."""
    held_out = sum(map(len, original.references["held_out"].completions))
    key = [probe.reference.prompts, probe.reference.completions, [asdict(each) for each in offered.candidates], held_out]
    known = {plan: Judged(**each) for plan, each in store.read("judged", key).items()}
    if known:
        say(f"compress: {len(known)} plans were judged before")
    return find(
        offered,
        probe,
        bounds,
        held_out=held_out,
        objective=config.objective,
        known=known,
        told=lambda everything: store.write("judged", key, {plan: asdict(each) for plan, each in everything.items()}),
    )


def _tested(config: CompressConfig, probe: Probe, result: Found, offered: Offer) -> tuple[Plan, bool]:
    """(the boldest plan that the held-out prompts let pass, the safest one tested if they let none; whether all passed)."""
    plans = ladder(result)
    with progress("compress: held-out prompts", len(plans), "plans") as advance:

        def passes(plan: Plan) -> bool:
            traces = probe.traces(offered.weights(plan))
            advance()
            return judge_budget(upper_bounds(probe.reference, traces, config.seed), config.bounds)

        passed = settled(plans, passes)
    return plans[max(passed - 1, 0)], passed == len(plans)


def settled(plans: Sequence[Any], passes: Callable[[Any], bool]) -> int:
    """How many of `plans`, from its beginning, pass before the first that does not; what comes after that is not asked.

    >>> settled([1, 2, 5, 3], lambda size: size < 4)
    2
    """
    for count, plan in enumerate(plans):
        if not passes(plan):
            return count
    return len(plans)


def ladder(result: Found) -> list[Plan]:
    """Plans that the search found within the budget, from the safest to the one it chose."""
    plans = {step.key: step for step in result.trail if step.within and step.key and step.predicted < result.predicted}
    safer = sorted(plans.values(), key=lambda step: -step.predicted)[: _TESTED - 1]
    return [*(_plan_of(step.key, result.plan) for step in reversed(safer)), result.plan]


def _plan_of(key: str, like: Plan) -> Plan:
    named = dict(entry.rsplit("=", 1) for entry in key.split(",") if entry)
    return {name: named.get(name, "keep") for name in like}


def _reason(result: Found, plan: Plan, name: str) -> str:
    if plan[name] == result.plan[name]:
        return result.reasons[name]
    return f"{plan[name]}: the plan with {result.plan[name]} here did not pass on held-out prompts"


def _trail(result: Found, plan: Plan, bounds: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "why": step.why,
            "bytes": step.bytes,
            "predicted_kl": step.predicted,
            **step.judged.figures,
            "foreseen": dict(step.judged.bounds),
            "within": all(step.judged.bounds[metric] <= bound for metric, bound in bounds.items()),
            "chosen": _plan_of(step.key, plan) == plan,
        }
        for step in result.trail
    ]
