"""What the report shows of a compression: the choice per layer, the search's frontier, the divergence, and texts side by side.

Promise: plain figure data (cluster/figure.py), nothing is drawn here. Price: none beyond the figures it is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster import figure
from train.compress.certify import observed_fdt
from train.compress.divergence import Reference, Trace, first_divergent, survival
from train.compress.noise import Noise, flips_by_prompt

__all__ = ["bytes_table", "chosen", "diffs", "divergence", "frontier"]

_LAYER = re.compile(r"(?:^|\.)(\d+)\.(.+)")
_SHOWN = 4
_CONTEXT = 60


def chosen(rows: Sequence[Mapping[str, Any]]) -> figure.Figure:
    """The heat map: layers by matrices, each with its option and the share of its bytes that it keeps."""
    cells: dict[str, dict[str, tuple[float, str]]] = {}
    for row in rows:
        layer, matrix = _place(row["name"])
        cells.setdefault(layer, {})[matrix] = (row["bytes_after"] / row["bytes_before"], row["option"])
    return figure.cells("What each matrix became, and the share of its bytes", "layer", "share of the bytes", cells)


def _place(name: str) -> tuple[str, str]:
    """(layer, matrix within it) of a module path."""
    found = _LAYER.search(name)
    return (found[1], found[2].removeprefix("self_attn.").removeprefix("mlp.")) if found else ("–", name.removeprefix("model."))


def frontier(points: Mapping[str, Sequence[tuple[float, float]]], metric: str, bounds: Mapping[str, float]) -> figure.Figure:
    """(bytes, figure) of every plan that the search judged, of what was chosen, and the budget as a line."""
    scale, unit = (100.0, "% of the search's tokens that differ") if metric == "flips" else (1.0, "nats per token")
    series = {
        name: ([size / 1e6 for size, _ in sorted(pairs)], [scale * value for _, value in sorted(pairs)])
        for name, pairs in points.items()
        if pairs
    }
    sizes = [size for xs, _ in series.values() for size in xs]
    lines = dict(series)
    if metric in bounds and sizes:
        lines["budget"] = ([min(sizes), max(sizes)], [scale * bounds[metric]] * 2)
    return figure.lines("Plans that the search judged", "megabytes of weights", unit, lines, dots=tuple(series))


def divergence(
    name: str, reference: Reference, traces: Sequence[Trace], noisy: Sequence[Trace], certificate: Mapping[str, Any], noise: Noise
) -> dict[str, figure.Figure]:
    """Flips beside the noise, KL by prompt, and how long completions agree."""
    candidates = {name: traces, "the original in bfloat16": noisy}
    shares = {
        name: {each: 100 * certificate[each] for each in ("flips", "flips_upper", "flips_beyond_noise")},
        "numeric noise": {"bfloat16": 100 * noise.flips, "batch of 8": 100 * noise.batch_flips, "decoding": 100 * noise.decode_flips},
    }
    by_prompt = {each: sorted(float(trace.kl.mean()) for trace in found) for each, found in candidates.items()}
    agreeing = {each: survival(observed_fdt(flips_by_prompt(reference, found))) for each, found in candidates.items()}
    return {
        "divergence": figure.bars("Tokens that differ from the original's", "% of tokens", shares),
        "kl": figure.lines(
            "KL from the original, by prompt",
            "prompts, in order",
            "nats per token",
            {each: (range(1, len(values) + 1), values) for each, values in by_prompt.items()},
        ),
        "survival": figure.lines(
            "Completions that still agree",
            "tokens",
            "share",
            {each: (range(len(alive) + 1), [1.0, *alive]) for each, alive in agreeing.items()},
        ),
    }


def diffs(
    reference: Reference,
    traces: Sequence[Trace],
    complete: Callable[[list[list[int]]], list[list[int]]],
    decode: Callable[[Sequence[int]], str],
) -> figure.Figure:
    """A few completions of both models from where they part, the earliest, the latest and two between; `complete` is the candidate's.

    The first divergent token of each stands between « and ».
    """
    fdts = [first_divergent(each) for each in flips_by_prompt(reference, traces)]
    parting = sorted((fdt, index) for index, (fdt, censored) in enumerate(fdts) if not censored)
    if not parting:
        return figure.text("Where completions part", f"None of {len(fdts)} completions differs in any token.")
    some = sorted({parting[at * (len(parting) - 1) // (_SHOWN - 1)] for at in range(_SHOWN)})
    theirs = complete([list(reference.prompts[index]) for _, index in some])
    blocks = [
        _diff(reference.prompts[index], reference.completions[index], other, fdt, decode)
        for (fdt, index), other in zip(some, theirs, strict=True)
    ]
    return figure.text(f"Where completions part: {len(parting)} of {len(fdts)} do, {len(some)} of them", "\n\n".join(blocks))


def _diff(prompt: Sequence[int], own: Sequence[int], other: Sequence[int], fdt: int, decode: Callable[[Sequence[int]], str]) -> str:
    before = decode([*prompt, *own[:fdt]])[-_CONTEXT:]

    def marked(tokens: Sequence[int]) -> str:
        rest = decode(tokens[fdt + 1 :])[: 2 * _CONTEXT]
        return f"«{decode(tokens[fdt : fdt + 1])}»{rest}" if fdt < len(tokens) else "«»"

    lines = [f"first divergence after {fdt} tokens, from …{before!r}"]
    return "\n".join([*lines, *(f"  {who:<11}{marked(tokens)!r}" for who, tokens in (("original", own), ("compressed", other)))])


def bytes_table(sizes: Mapping[str, Mapping[str, int]]) -> figure.Figure:
    """Bytes by kind, before and after."""
    rows = [
        [kind, f"{before:,}", f"{sizes['after'][kind]:,}", f"{sizes['after'][kind] / before:.2f}" if before else "–"]
        for kind, before in sizes["before"].items()
    ]
    return figure.table("Bytes of the weight files", ["kind", "before", "after", "ratio"], rows)
