"""Does a certificate keep its promise? The whole way with other prompts for everything, and then prompts that nobody has seen.

Promise: what `sterna compress` does (budgeted.py): options with kernels, a search on its own prompts, plans tested on held-out ones
from the safest to the boldest. Price per draw on one core, for models/tiny-code: two minutes.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.compression_bench import KERNELS, Bench, figures, parts_of, some
from train.compress.budgeted import ladder, settled
from train.compress.calibrate import moments
from train.compress.find import find, offer, probe_of
from train.compress.options import parse_options

__all__ = ["BUDGET", "DRAWS", "drawn"]

DRAWS, BUDGET = 20, 0.02
_SIZES = {"held_out": 192, "search": 96, "calibration": 64, "fresh": 256}


def drawn(bench: Bench, seed: int) -> dict[str, Any]:
    """What one draw's search foresaw, what its certificate says, and what fresh prompts say."""
    parts, started = parts_of(len(bench.texts), seed, _SIZES), time.perf_counter()
    search, held_out = (bench.probe(parts[name]) for name in ("search", "held_out"))
    known = moments(bench.dense, [bench.texts[row] for row in parts["calibration"]])
    offered = offer(bench.dense, search, parse_options(KERNELS), known)
    found = find(offered, search, {"flips": BUDGET}, held_out=sum(map(len, held_out.reference.completions)))
    certificates: list[dict[str, float]] = []

    def passes(plan: dict[str, str]) -> bool:
        certificates.append(figures(held_out.reference, held_out.traces(offered.weights(plan))))
        return certificates[-1]["flips_upper"] <= BUDGET

    plans = ladder(found)
    passed = settled(plans, passes)
    plan, seconds = plans[max(passed - 1, 0)], time.perf_counter() - started
    reference = some(bench.reference, parts["fresh"])
    return {
        "bytes": sum(each.bytes for each in offered.candidates if plan[each.matrix] == each.option),
        "on_search": found.judged.figures["flips"],
        "foreseen": found.judged.bounds["flips"],
        "passes": search.passes,
        "seconds": seconds,
        "tested": len(certificates),
        "boldest": passed == len(plans),
        "pass": passed > 0,
        "certificate": certificates[max(passed - 1, 0)],
        "fresh": figures(reference, probe_of(bench.dense, reference).traces(offered.weights(plan))),
    }
