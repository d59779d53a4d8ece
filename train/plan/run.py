"""`sterna plan run`: tokens, a budget and what machines do -> plan.toml.

Promise: what `sterna pretrain` will run as it is, with the predicted loss, time, memory and price, each with an interval, and what was
measured (or taken from the catalogue, which is said) to predict them. Price: some seconds of training two probe models on this machine,
which must be like the ones that will train; nothing for machines of the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tomli_w

from cluster.artifact import Artifact, finished, open_artifact, publish
from cluster.console import say
from cluster.storage import content_digest
from train.plan.budget import MAX_EPOCHS, Candidate, decide, possible_shapes, refuse_unpriced, used_share
from train.plan.catalogue import LOCAL, Fleet, fleet_of, read_catalogue
from train.plan.config import Budget, PlanConfig
from train.plan.document import Planned, describe, document
from train.plan.law_file import read_law
from train.plan.local import local_machine, measured_table
from train.plan.machine import Machine
from train.plan.outlook import Data, Outlook
from train.plan.price import Market, Rates, Tariff
from train.plan.rented import rented
from train.plan.serving import for_serving
from train.plan.text import data_of

__all__ = ["plan_run"]

_STAGE = "plan"


def plan_run(config: PlanConfig) -> Artifact:
    """Choose shape, steps, batches and rates for the tokens and the budget, and write plan.toml to `config.output`.

    Raises ValueError when the tokens folder is not one, or when no model can be trained within budget and memory.
    """
    tokens = open_artifact(config.tokens, made_by="tokenize")
    law = open_artifact(config.law, made_by=("fit", "sweep")) if config.law else None
    inputs = {"tokens": tokens.digest} | ({"law": law.digest} if law else {})
    fleet = None if config.machines.strip().lower() == LOCAL else fleet_of(config.machines, read_catalogue(config.catalogue))
    if config.catalogue:
        inputs["catalogue"] = content_digest(config.catalogue)
    if done := finished(config.output, stage=_STAGE, inputs=inputs, config=config):
        say(f"{config.output}: already done")
        return done
    data = data_of(tokens)
    with publish(config.output, stage=_STAGE, inputs=inputs, config=config) as draft:
        market = _market(config, fleet)
        machine = _machine(config, fleet, tokens.local(), data, market, draft.dir)
        planned = _Planner(config, data, machine, market, Outlook(read_law(law.local()) if law else None)).plan()
        measured = measured_table(machine) if machine.measured else {}
        (draft.dir / "plan.toml").write_text(tomli_w.dumps(document(planned, measured)), encoding="utf-8")
        describe(draft, planned)
    return open_artifact(config.output, made_by=_STAGE)


@dataclass(frozen=True, slots=True)
class _Planner:
    """All that a choice follows from."""

    config: PlanConfig
    data: Data
    machine: Machine
    market: Market
    outlook: Outlook

    def plan(self) -> Planned:
        """The choice, and the one that twice the budget would make."""
        budget = Budget.parse(self.config.budget)
        best, optimal, candidates = self._chosen(budget)
        try:
            doubled: Candidate | str = self._chosen(budget.times(2))[0]
        except ValueError as refused:
            doubled = str(refused)
        if (used := used_share(best, budget, self.market)) < 0.5:
            say(f"budget: {used:.2g} of it is used: more than {MAX_EPOCHS:.0f} passes over this text are of no use; tokenize more")
        beyond = self.outlook.beyond(best.shape, best.flops)
        if beyond > 100:
            say(f"law: this run is {beyond:,.0f} times beyond the largest that {self.config.law} was fitted to; a larger sweep is surer")
        return Planned(
            config=self.config, data=self.data, machine=self.machine, market=self.market, outlook=self.outlook, budget=budget,
            best=best, optimal=optimal, candidates=candidates, doubled=doubled,
        )  # fmt: skip

    def _chosen(self, budget: Budget) -> tuple[Candidate, Candidate, list[Candidate]]:
        """(the choice, what it would be without serving, all that were possible)."""
        config = self.config
        optimal, candidates = decide(
            self.data, budget, self.machine, max_parameters=config.max_params, seed=config.seed, architecture=config.architecture,
            outlook=self.outlook, market=self.market,
        )  # fmt: skip
        if not config.serve_tokens:
            return optimal, optimal, candidates
        shapes = possible_shapes(self.data, config.max_params, config.architecture)
        best = for_serving(optimal, shapes, config.serve_tokens, self.data, self.machine, outlook=self.outlook, market=self.market)
        return best, optimal, candidates


def _market(config: PlanConfig, fleet: Fleet | None) -> Market:
    rates = Rates(preemptions_per_hour=config.preemptions_per_hour)
    return Market(kind=config.market, rates=rates, tariff=_tariff(config, fleet))


def _tariff(config: PlanConfig, fleet: Fleet | None) -> Tariff | None:
    """What all machines cost an hour: as their owner says, as AWS says today, or as the catalogue has it."""
    from cluster.prices import ASSUMED_SPOT

    if config.price_per_hour is not None:
        spot = config.spot_price_per_hour or config.price_per_hour * ASSUMED_SPOT
        return Tariff(on_demand=config.price_per_hour, spot=spot, source="yours")
    if fleet is None:
        return None
    found = (_asked(fleet.machine_name, config.region) if config.region else None) or (
        fleet.machine.on_demand_per_hour,
        fleet.machine.spot_per_hour or fleet.machine.on_demand_per_hour * ASSUMED_SPOT,
        f"catalogue ({fleet.machine.source})" + ("" if fleet.machine.spot_per_hour else f"; spot assumed at {ASSUMED_SPOT:g} of it"),
    )
    spot = config.spot_price_per_hour or found[1] * fleet.share
    return Tariff(on_demand=found[0] * fleet.share, spot=spot, source=found[2])


def _asked(kind: str, region: str) -> tuple[float, float, str] | None:
    """(on demand, spot, where from) of one machine, from AWS or what it said lately; None, said in a line, where neither is to be had."""
    import time

    from cluster.market import ON_DEMAND, SPOT, Pool
    from cluster.prices import PricesConfig, quotes

    try:
        found = quotes((kind,), region, PricesConfig())
    except ValueError as error:
        say(f"{error}; the catalogue's prices are taken")
        return None
    fixed, spot = (found.book.at(Pool(region, kind), market, time.time()) for market in (ON_DEMAND, SPOT))
    return (fixed.per_hour, spot.per_hour, found.provenance()) if fixed and spot else None


def _machine(config: PlanConfig, fleet: Fleet | None, folder: Path, data: Data, market: Market, disk: Path) -> Machine:
    """This machine, measured, or the catalogue's fleet."""
    possible_shapes(data, config.max_params, config.architecture)  # refuses before anything is measured
    budget = Budget.parse(config.budget)
    refuse_unpriced(budget, market)
    if fleet is None:
        if budget.dollars is not None and market.tariff is not None:
            budget = Budget(seconds=budget.dollars / market.tariff.on_demand * 3600)
        return local_machine(config, folder, data, budget, disk)
    machine = rented(
        fleet,
        vocab_size=data.vocab_size,
        sequence_length=data.sequence_length,
        architecture=config.architecture,
        precision="float32" if config.precision == "float32" else "bfloat16",
        num_workers=config.num_workers,
        memory_bytes=config.memory_bytes,
    )
    return replace(machine, failure_hours=config.failure_hours)
