"""The ground of the compression comparison: one model, its completions of real prompts in disjoint parts, and plans judged on them.

Promise: what is chosen is chosen on calibration and search prompts, what is shown is measured on held-out ones; all plans go through
the same weights (`Variant.dense`, what is read back from disk) and the same passes. Price: see the parts in compression.py.
"""

from __future__ import annotations

import gzip
import json
import pickle
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.storage import digest_of
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.text import Tokenizer
from train.compress.calibrate import matrices, moments
from train.compress.candidates import Variant, degraded
from train.compress.certify import flips_upper, kl_upper, observed_fdt
from train.compress.divergence import Reference, Trace, make_reference, survival_quantile
from train.compress.find import Offer, offer, probe_of
from train.compress.noise import flips_by_prompt
from train.compress.options import option, parse_options
from train.compress.original import greedy
from train.compress.probe import Probe
from train.compress.quantize import load_dense
from train.compress.store import Store

__all__ = ["KERNELS", "OPTIONS", "Bench", "Plain", "figures", "one_thread", "parts_of", "some", "text_reference"]

OPTIONS = "int8,int8-gptq,int8-gptq-g64,int7,int6,int5,int4,int4-g32,int3,int2"
KERNELS = "int8,int8-gptq,int8-gptq-g64,int4,int4-g32"
PROMPT_TOKENS, COMPLETION_TOKENS = 48, 64
SIZES = {"held_out": 256, "search": 96, "calibration": 96, "fresh": 256}


def some(reference: Reference, rows: Sequence[int]) -> Reference:
    """A reference of some of its completions."""
    return Reference(*(tuple(getattr(reference, name)[i] for i in rows) for name in Reference.__slots__))


def parts_of(num_prompts: int, seed: int, sizes: Mapping[str, int]) -> dict[str, list[int]]:
    """Disjoint rows by part, drawn by `seed`."""
    order, parts = np.random.default_rng(seed).permutation(num_prompts).tolist(), {}
    for name, size in sizes.items():
        parts[name], order = order[:size], order[size:]
        assert len(parts[name]) == size, f"{num_prompts} prompts are too few for {name}"
    return parts


def figures(reference: Reference, traces: Sequence[Trace]) -> dict[str, float]:
    """What a plan did to the reference's tokens."""
    flips, rng = flips_by_prompt(reference, traces), np.random.default_rng(0)
    kl = [trace.kl for trace in traces]
    fdt = observed_fdt(flips)
    return {
        "flips": float(np.concatenate(flips).mean()),
        "flips_upper": flips_upper(flips, rng),
        "kl": float(np.concatenate(kl).mean()),
        "kl_upper": kl_upper(kl, rng),
        "kl_p99": float(np.quantile(np.concatenate(kl), 0.99)),
        "fdt_mean": float(np.mean([length for length, _ in fdt])),
        "fdt_median": survival_quantile(fdt, 0.5),
        "fdt_p10": survival_quantile(fdt, 0.1),
        "perplexity": float(np.exp(np.concatenate([trace.losses for trace in traces]).mean())),
    }


class Plain:
    """A transformers model as a scorer (`divergence.Scorer`)."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def logits(self, tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = self._model(input_ids=torch.tensor([tokens])).logits[0]
        return found


class Bench:
    """The model with all that is worked out once."""

    def __init__(self, model: Path, data: Path, work: Path) -> None:
        self.model, self._data, self.store = model, data, Store(work)
        self.dense = load_dense(model)
        self.matrices_bytes = sum(p.nbytes for p in self.dense.parameters() if p.dim() == 2)

    @cached_property
    def texts(self) -> list[list[int]]:
        """Tokens of programming problems with their solutions, distinct from their beginnings on."""
        tokenizer, found = Tokenizer(self.model), {}
        rows = [json.loads(line) for line in (self._data / "code/mbpp.jsonl").read_text().splitlines()]
        texts = [f'"""{row["text"]}"""\n{row["code"]}' for row in rows]
        with gzip.open(self._data / "code/HumanEval.jsonl.gz", "rt") as lines:
            texts += [row["prompt"] + row["canonical_solution"] for row in map(json.loads, lines)]
        for text in texts:
            tokens = tokenizer.encode(text.replace("\r\n", "\n"))[:192]
            if len(tokens) >= PROMPT_TOKENS:
                found.setdefault(tuple(tokens[:PROMPT_TOKENS]), tokens)
        return list(found.values())

    @cached_property
    def reference(self) -> Reference:
        """The model's completion of every text's beginning."""
        prompts = [tokens[:PROMPT_TOKENS] for tokens in self.texts]
        return self.store.reference([str(self.model), digest_of(prompts), COMPLETION_TOKENS], lambda: self._completed(prompts))

    def _completed(self, prompts: list[list[int]]) -> Reference:
        engine = Engine.load(self.model, EngineConfig(dtype="float32"))
        return make_reference(engine, prompts, greedy(engine, prompts, COMPLETION_TOKENS))

    @cached_property
    def parts(self) -> dict[str, list[int]]:
        """The first draw of the prompts, which all parts but the promise use."""
        return parts_of(len(self.texts), 0, SIZES)

    def probe(self, part: Sequence[int]) -> Probe:
        """A judge on these rows of the reference."""
        return probe_of(self.dense, some(self.reference, part))

    @cached_property
    def held_out(self) -> Probe:
        return self.probe(self.parts["held_out"])

    @cached_property
    def search(self) -> Probe:
        return self.probe(self.parts["search"])

    @cached_property
    def moments(self) -> dict[str, Any]:
        return moments(self.dense, [self.texts[row] for row in self.parts["calibration"]])

    @cached_property
    def _offered(self) -> tuple[Offer, float]:
        """What the search chooses from and the seconds it took; kept beside the completions, since every part needs it."""
        place = self.store.folder / f"offer-{digest_of([str(self.model), OPTIONS, SIZES])[:20]}.pickle"
        if not place.exists():
            known, search, started = self.moments, self.search, time.perf_counter()
            made = offer(self.dense, search, parse_options(OPTIONS), known)
            place.write_bytes(pickle.dumps((made, time.perf_counter() - started)))
        kept: tuple[Offer, float] = pickle.loads(place.read_bytes())
        return kept

    @property
    def offer(self) -> Offer:
        return self._offered[0]

    @property
    def with_kernels(self) -> Offer:
        """What the engine computes with as it is stored."""
        wanted = ("keep", *KERNELS.split(","))
        return Offer([each for each in self.offer.candidates if each.option in wanted], self.offer.variants)

    @property
    def offer_s(self) -> float:
        return self._offered[1]

    def variant(self, name: str, chosen: str) -> Variant:
        """A matrix under an option, whether the search has it or not."""
        found = self.offer.variants.get(name, {}).get(chosen)
        return found or degraded(self.dense.get_submodule(name).weight, option(chosen), self.moments.get(name))

    def judged(self, plan: Mapping[str, str], probe: Probe) -> dict[str, float]:
        """Bytes of the matrices on disk, and the figures on the probe's prompts."""
        size = self.bytes_of(plan)
        traces = probe.traces({name: self.variant(name, chosen).dense for name, chosen in plan.items() if chosen != "keep"})
        return {"bytes": size, "share": size / self.matrices_bytes, **figures(probe.reference, traces)}

    def bytes_of(self, plan: Mapping[str, str]) -> int:
        """What export writes of all matrices."""
        return sum(matrix.stored_bytes(option(plan.get(matrix.name, "keep"))) for matrix in matrices(self.dense))


def text_reference(bench: Bench, rows: Sequence[int]) -> Reference:
    """Texts as if they were completions of their first token: what perplexity is measured on."""
    texts = [bench.texts[row] for row in rows]

    def make() -> Reference:
        engine = Engine.load(bench.model, EngineConfig(dtype="float32"))
        return make_reference(engine, [text[:1] for text in texts], [text[1:] for text in texts])

    return bench.store.reference([str(bench.model), digest_of(texts)], make)


def one_thread() -> None:
    """Two processes of several threads each are slower than one: parts run beside others."""
    torch.set_num_threads(1)
