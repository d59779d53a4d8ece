"""Compression within a divergence budget beside what others do at equal bytes on disk; its promise, its shapes, its cost.

Promise: one table from `runs/compression.json`; everything shown is measured on held-out prompts (programming problems, prompts of
48 tokens with the model's own 64-token greedy completions). A finished figure is not measured again, so an interrupted run goes on.
Price on one core, for models/tiny-code: budgets 8 min, equal 8, greedy 20, promise 40, shapes 4, eight 6, cost 2.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compression_bench import Bench, figures, one_thread, text_reference
from benchmarks.compression_eight import ROUNDINGS, SHARES, by_share, noise_of
from benchmarks.compression_promise import DRAWS, drawn
from benchmarks.compression_table import told
from train.compress.baselines import accumulated, in_order_of_harm, per_byte, uniform
from train.compress.calibrate import matrices
from train.compress.candidates import degraded
from train.compress.find import Offer, find, probe_of
from train.compress.options import option
from train.compress.search import Candidate, at_bytes

BUDGETS = (0.005, 0.02, 0.05, 0.10)
UNIFORM = ("int8", "int4", "int4-rtn", "int8-gptq", "int4-g32", "int3")
PRUNED = ("2:4-sparsegpt", "sparse50-sparsegpt", "2:4-wanda", "sparse50-wanda", "2:4-magnitude", "sparse50-magnitude")
GREEDY = ("int8-gptq", "int6", "int5", "int4", "int3", "int2")  # a pass twice for each of them and each matrix
SPARSITIES = (25, 50, 75, 90, 95)
PARTS = ("budgets", "equal", "greedy", "promise", "shapes", "eight", "cost")


class Figures:
    """What has been measured, in a file after every figure."""

    def __init__(self, place: Path, *, fresh: bool) -> None:
        self._place = place
        if fresh:
            place.unlink(missing_ok=True)
        self.all = self._read()

    def once(self, part: str, name: str, make: Callable[[], Any]) -> Any:
        """The figure `name` of `part`, measured unless it is there."""
        self.all = self._read()  # another process may be measuring other figures
        if name not in self.all.setdefault(part, {}):
            made = make()
            self.all = self._read()
            self.all.setdefault(part, {})[name] = made
            self._place.parent.mkdir(parents=True, exist_ok=True)
            scratch = self._place.with_suffix(f".{os.getpid()}")
            scratch.write_text(json.dumps(self.all, indent=1))
            scratch.replace(self._place)
        return self.all[part][name]

    def _read(self) -> dict[str, Any]:
        return dict(json.loads(self._place.read_text())) if self._place.exists() else {}


def main() -> None:
    """Fill in what is missing of the figures, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="../shared/models/tiny-code")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--json", default="runs/compression.json")
    parser.add_argument("--work", default="runs/compression-work", help="folder for the completions")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--fresh", action="store_true", help="forget earlier figures")
    options = parser.parse_args()
    one_thread()
    kept = Figures(Path(options.json), fresh=options.fresh)
    bench = Bench(Path(options.model), Path(options.data), Path(options.work))
    for part in options.parts:
        globals()[f"_{part}"](bench, kept)
    print(told(kept.all))


def _budgets(bench: Bench, kept: Figures) -> None:
    """The search at each budget, and what its certificate says: from all options, and from those that have kernels."""
    for budget in BUDGETS:
        kept.once("budgets", f"{budget:g}", lambda budget=budget: _searched(bench, bench.offer, budget))
        kept.once("kernels", f"{budget:g}", lambda budget=budget: _searched(bench, bench.with_kernels, budget))


def _searched(bench: Bench, offered: Offer, budget: float) -> dict[str, Any]:
    held_out, search, started = sum(map(len, bench.held_out.reference.completions)), bench.search, time.perf_counter()
    found = find(offered, search, {"flips": budget}, held_out=held_out)
    seconds = {"offer": bench.offer_s, "search": time.perf_counter() - started}
    row = bench.judged(found.plan, bench.held_out) | {"met": found.met, "plan": found.plan, "passes": found.passes, "seconds": seconds}
    return row | {"foreseen": found.judged.bounds["flips"], "on_search": found.judged.figures["flips"]}


def _equal(bench: Bench, kept: Figures) -> None:
    """One option for all linear layers, against ours in as many bytes: from all options, and from those that have kernels."""
    linear = [m.name for m in matrices(bench.dense) if m.role == "linear"]
    plans = {chosen: uniform(bench.offer.candidates, "keep") | dict.fromkeys(linear, chosen) for chosen in (*UNIFORM, *PRUNED)}
    narrow = uniform(bench.offer.candidates, "int8")
    plans |= {f"{chosen}, embedding int8": narrow | dict.fromkeys(linear, chosen) for chosen in ("int8", "int4")}
    for name, plan in plans.items():
        theirs = kept.once("equal", name, lambda plan=plan: bench.judged(plan, bench.held_out))
        _ours(bench, kept, "equal", f"ours|{theirs['bytes']}", bench.offer.candidates, theirs["bytes"])
        _ours(bench, kept, "equal", f"ours with kernels|{theirs['bytes']}", bench.with_kernels.candidates, theirs["bytes"])


def _ours(bench: Bench, kept: Figures, part: str, name: str, candidates: list[Candidate], size: int) -> None:
    plan = at_bytes(candidates, size)
    if plan is not None:
        kept.once(part, name, lambda: bench.judged(plan, bench.held_out))


def _greedy(bench: Bench, kept: Figures) -> None:
    """Changes one by one in order of harm, by first divergent tokens and by perplexity, at our budgets' sizes; fewer options for all."""
    offered = [each for each in bench.offer.candidates if each.option in ("keep", *GREEDY)]
    fdt, texts = bench.probe(bench.parts["search"][:48]), probe_of(bench.dense, text_reference(bench, bench.parts["search"][:32]))
    for candidate in offered:
        name, chosen = candidate.matrix, candidate.option
        if chosen != "keep":
            change = {name: bench.offer.variants[name][chosen].dense}
            kept.once("fdt", f"{name}|{chosen}", lambda c=change: figures(fdt.reference, fdt.traces(c))["fdt_mean"])
            kept.once("perplexity", f"{name}|{chosen}", lambda c=change: _nats(texts.traces(c)))
    whole = kept.once("fdt", "keep", lambda: figures(fdt.reference, fdt.traces({}))["fdt_mean"])
    base = kept.once("perplexity", "keep", lambda: _nats(texts.traces({})))
    harms = {
        "fdt": {tuple(key.split("|")): whole - value for key, value in kept.all["fdt"].items() if key != "keep"},
        "perplexity": {tuple(key.split("|")): value - base for key, value in kept.all["perplexity"].items() if key != "keep"},
    }
    for budget, row in kept.all.get("budgets", {}).items():
        for guide, values in harms.items():
            for rank in (in_order_of_harm, per_byte):
                plan = accumulated(offered, values, row["bytes"], rank)
                kept.once("greedy", f"{budget}|{guide}, {rank.__name__}", lambda plan=plan: bench.judged(plan, bench.held_out))
        _ours(bench, kept, "greedy", f"{budget}|ours", offered, row["bytes"])


def _nats(traces: Any) -> float:
    return float(np.concatenate([trace.losses for trace in traces]).mean())


def _promise(bench: Bench, kept: Figures) -> None:
    """New prompts for calibration, search and certificate in every draw; then fresh ones, on which the budget is to hold."""
    for seed in random.Random(os.getpid()).sample(range(1, DRAWS + 1), DRAWS):  # so that a second process can help
        kept.once("promise", str(seed), lambda seed=seed: drawn(bench, seed))


def _shapes(bench: Bench, kept: Figures) -> None:
    """First divergent tokens per component and sparsity (Wanda)."""
    probe = bench.probe(bench.parts["search"][:48])
    for matrix in matrices(bench.dense):
        for percent in SPARSITIES if matrix.role == "linear" else ():

            def pruned(name: str = matrix.name, percent: int = percent) -> dict[str, float]:
                variant = degraded(bench.dense.get_submodule(name).weight, option(f"sparse{percent}-wanda"), bench.moments[name])
                found = figures(probe.reference, probe.traces({name: variant.dense}))
                return {key: found[key] for key in ("fdt_mean", "fdt_median", "flips", "kl", "perplexity")}

            kept.once("shapes", f"{matrix.name}|{percent}", pruned)


def _eight(bench: Bench, kept: Figures) -> None:
    """How many of the parameters go to 8 bits before the tokens differ by more than the arithmetic's own noise."""
    kept.once("eight", "noise", lambda: noise_of(bench))
    for rounding in ROUNDINGS:
        for share in SHARES:
            kept.once("eight", f"{rounding}|{share:g}", lambda rounding=rounding, share=share: by_share(bench, rounding, share))


def _cost(bench: Bench, kept: Figures) -> None:
    """How the search grows with the number of matrices: random models of more and more layers."""
    from benchmarks.compression_growth import grown

    for depth in (2, 4, 8, 16):
        kept.once("cost", str(depth), lambda depth=depth: grown(bench.dense.config, depth))


if __name__ == "__main__":
    main()
