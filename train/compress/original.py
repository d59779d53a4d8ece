"""The original on its prompts: its own greedy completions, its likeliest tokens there, its losses on texts, and its noise floor.

Promise: all that a candidate is compared with, in float32, worked out once and kept in the store. Price: greedy decoding of every
prompt, a pass over the completions in float32 and one in bfloat16, a pass over the texts, and a few prompts decoded twice more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.console import progress, say
from cluster.settings import as_dict
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Sampling
from train.compress.divergence import TOP, Reference, Trace, make_reference, text_losses
from train.compress.noise import Noise, measure_noise
from train.compress.prompts import Probes
from train.compress.store import Store

__all__ = ["Original", "greedy", "losses_of", "study"]


@dataclass(frozen=True, slots=True)
class Original:
    """What candidates are judged by."""

    references: Mapping[str, Reference]
    """By part of the prompts: `held_out`, and where there is a search `search`."""
    text_losses: Sequence[NDArray[np.float64]]
    """Nats per token of the held-out texts."""
    noise: Noise
    noisy: Sequence[Trace]
    """The original's traces of the held-out completions in bfloat16."""
    calibration: Sequence[list[int]]
    """Texts whose inputs the matrices are fitted to: the calibration prompts' own, and the prompts with the original's completions."""


def study(source: Path, digest: str, parts: Mapping[str, Probes], engine: EngineConfig, num_tokens: int, store: Store) -> Original:
    """The model in `source` (whose contents have the `digest`) on the parts of its prompts, completed with `num_tokens` each."""
    exact = Engine.load(source, replace(engine, dtype="float32"))
    references, calibration = {}, []
    for name, probes in parts.items():
        key = [digest, probes.prompts, num_tokens, TOP, exact.max_length]
        if name == "calibration":
            calibration = [*probes.texts, *_written(exact, probes, num_tokens, store, key)]
        else:
            references[name] = store.reference(key, partial(_reference, exact, name, probes, num_tokens))
    losses = _text_losses(exact, parts["held_out"], store, digest)
    del exact
    noise, noisy = _noise(source, engine, references["held_out"], store, digest)
    say(
        f"noise floor: {noise.flips:.2%} of the tokens flip in bfloat16, {noise.batch_flips:.2%} beside seven other sequences, "
        f"{noise.decode_flips:.2%} between decoding and one pass"
    )
    return Original(references, losses, noise, noisy, calibration)


def _text_losses(engine: Engine, probes: Probes, store: Store, digest: str) -> list[NDArray[np.float64]]:
    table = store.read("losses", [digest, probes.texts])
    if not table:
        with progress("the original on held-out texts", len(probes.texts), "texts") as advance:
            table = {"losses": [each.tolist() for each in losses_of(engine, probes.texts, advance)]}
        store.write("losses", [digest, probes.texts], table)
    return [np.array(each) for each in table["losses"]]


def _noise(source: Path, engine: EngineConfig, reference: Reference, store: Store, digest: str) -> tuple[Noise, list[Trace]]:
    key = [digest, reference.prompts, reference.completions, as_dict(engine)]
    table = store.read("noise", key)
    if not table:
        with progress("the original in other arithmetic", len(reference.prompts), "passes") as advance:
            noise, traces = measure_noise(source, engine, reference, done=advance)
        table = {"noise": asdict(noise), "traces": [{name: value.tolist() for name, value in asdict(trace).items()} for trace in traces]}
        store.write("noise", key, table)
    return Noise(**table["noise"]), [Trace(**{name: np.array(value) for name, value in each.items()}) for each in table["traces"]]


def _written(engine: Engine, probes: Probes, num_tokens: int, store: Store, key: Any) -> list[list[int]]:
    """The calibration prompts with the original's completions: what it reads while it writes, which is where it will be judged."""
    table = store.read("calibration", key)
    if not table:
        with progress("the original's completions (calibration)", len(probes.prompts) * num_tokens, "tokens at most") as advance:
            completions = greedy(engine, probes.prompts, num_tokens, advance)
        table = {"texts": [[*prompt, *completion] for prompt, completion in zip(probes.prompts, completions, strict=True)]}
        store.write("calibration", key, table)
    return [list(text) for text in table["texts"]]


def _reference(engine: Engine, name: str, probes: Probes, num_tokens: int) -> Reference:
    part = name.replace("_", " ")
    with progress(f"the original's completions ({part})", len(probes.prompts) * num_tokens, "tokens at most") as advance:
        completions = greedy(engine, probes.prompts, num_tokens, advance)
    with progress(f"the original reads them ({part})", len(probes.prompts), "passes") as advance:
        return make_reference(engine, probes.prompts, completions, done=advance)


def greedy(
    engine: Engine, prompts: Sequence[list[int]], num_tokens: int, advance: Callable[[int], object] | None = None
) -> list[list[int]]:
    """Greedy completions, an end token included."""
    sampling = Sampling(max_tokens=num_tokens, temperature=0.0)
    return [list(each.tokens) for each in engine.generate(prompts, sampling, progress=advance)]


def losses_of(engine: Engine, texts: Sequence[list[int]], advance: Callable[[], object]) -> list[NDArray[np.float64]]:
    """Nats per token of each text."""
    losses = []
    for text in texts:
        losses.append(text_losses(engine, text))
        advance()
    return losses
