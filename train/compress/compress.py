"""`sterna compress`: a smaller model folder, and a certificate of what that did to its tokens.

Promise: the folder loads in transformers and in our engine; compression.json says for people which matrix became what, the
bytes on disk before and after, and every divergence figure with its interval beside the numeric noise floor. Price: the
original's greedy completions once, then three passes over them (original, original in bfloat16, compressed).
Source: Divergent Token Metrics (arXiv 2311.01544); see divergence.py and certify.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster import figure
from cluster.artifact import Artifact, Draft, finished, open_artifact, publish
from cluster.console import progress, say
from serve.engine.engine import Engine
from serve.engine.families import read_shape
from serve.engine.request import Sampling
from serve.engine.text import Tokenizer
from serve.engine.weights import read_config
from train.compress.certify import Noise, certify, flips_by_prompt, measure_noise, observed_fdt
from train.compress.config import CompressConfig
from train.compress.divergence import Reference, Trace, judge, make_reference, survival, text_losses
from train.compress.prompts import Probes, prompts_digest, read_probes
from train.compress.quantize import Matrix, disk_bytes, export_int8, load_dense, plan_int8
from train.model_folder import open_model

__all__ = ["compress"]


def compress(config: CompressConfig) -> Artifact:
    """Compress `config.model` into `config.output` and certify it on held-out prompts.

    Raises ValueError for a folder that is no model, has no tokenizer, is quantised already or cannot be compressed, and when
    there are no usable prompts.
    """
    source, digest = open_model(config.model)
    inputs = {"model": digest, "prompts": prompts_digest(config)}
    if done := finished(config.output, stage="compress", inputs=inputs, config=config):
        say(f"{config.output}: already done")
        return done
    probes = read_probes(config, Tokenizer(source), config.engine.max_length or read_shape(read_config(source), str(source)).max_length)
    model = load_dense(source)
    plan = plan_int8(model, lm_head=config.lm_head)
    with publish(config.output, stage="compress", inputs=inputs, config=config) as draft:
        export_int8(model, plan, source, draft.dir)
        del model
        sizes = {"before": dict(disk_bytes(source)), "after": dict(disk_bytes(draft.dir))}
        certificate, figures = _judge(config, probes, source, draft.dir)
        _fill(draft, config, plan, sizes, certificate, figures)
    return open_artifact(config.output, made_by="compress")


def _judge(config: CompressConfig, probes: Probes, source: Path, compressed: Path) -> tuple[dict[str, Any], dict[str, figure.Figure]]:
    """The certificate of `compressed` against `source`, and its figures."""
    exact, coarse = (replace(config.engine, dtype=dtype) for dtype in ("float32", "bfloat16"))
    base = Engine.load(source, exact)
    completions = _complete(base, probes.prompts, config.completion_tokens)
    with progress("compress: judging", 3 * len(probes.prompts) + 2 * len(probes.texts), "passes") as advance:
        reference = make_reference(base, probes.prompts, completions, done=advance)
        base_losses = _read(base, probes, advance)
        del base
        noisy = judge(Engine.load(source, coarse), reference, done=advance)
        candidate = Engine.load(compressed, exact)
        traces = judge(candidate, reference, done=advance)
        losses = _read(candidate, probes, advance)
    noise = measure_noise(reference, noisy, "bfloat16 against float32")
    certificate = certify(reference, traces, noise, (base_losses, losses), seed=config.seed)
    certificate["skipped"] = probes.skipped
    return certificate, _figures(config.method, reference, traces, noisy, certificate)


def _complete(engine: Engine, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """The original's greedy completions, an end token included."""
    with progress("compress: the original's completions", len(prompts) * num_tokens, "tokens at most") as advance:
        completions = engine.generate(prompts, Sampling(max_tokens=num_tokens, temperature=0.0), progress=advance)
    return [list(completion.tokens) for completion in completions]


def _read(engine: Engine, probes: Probes, advance: Callable[..., None]) -> list[np.ndarray]:
    losses = []
    for text in probes.texts:
        losses.append(text_losses(engine, text))
        advance()
    return losses


def _fill(
    draft: Draft,
    config: CompressConfig,
    plan: list[Matrix],
    sizes: dict[str, dict[str, int]],
    certificate: dict[str, Any],
    figures: dict[str, Any],
) -> None:
    share = sizes["after"]["total"] / sizes["before"]["total"]
    draft.counts = {
        "matrices": len(plan),
        "compressed": sum(m.option != "keep" for m in plan),
        "kept": sum(m.option == "keep" for m in plan),
    }
    draft.metrics = {
        "bytes": sizes["after"]["total"],
        "bytes_base": sizes["before"]["total"],
        "bytes_by_kind": sizes,
        "certificate": certificate,
    }
    draft.figures = {"bytes": _bytes_table(sizes), **figures}
    draft.headline = (
        f"{config.method}: {share:.2f} of the bytes, SDT {certificate['flips']:.2%} (noise {certificate['noise_floor']:.2%}), "
        f"FDT median {certificate['fdt_median']} of {certificate['longest']}, KL {certificate['kl_mean']:.1g}"
    )
    report = {"method": config.method, "bytes": sizes, "certificate": certificate, "plan": [asdict(matrix) for matrix in plan]}
    (draft.dir / "compression.json").write_text(json.dumps(report, indent=1) + "\n")


def _bytes_table(sizes: dict[str, dict[str, int]]) -> figure.Figure:
    rows = [
        [kind, f"{before:,}", f"{sizes['after'][kind]:,}", f"{sizes['after'][kind] / before:.2f}" if before else "–"]
        for kind, before in sizes["before"].items()
    ]
    return figure.table("Bytes of the weight files", ["kind", "before", "after", "ratio"], rows)


def _figures(
    method: str, reference: Reference, traces: Sequence[Trace], noisy: Sequence[Trace], certificate: dict[str, Any]
) -> dict[str, figure.Figure]:
    candidates = {method: traces, "the original in bfloat16": noisy}
    noise: Noise = measure_noise(reference, noisy, "")
    shares = {
        method: {name: 100 * certificate[name] for name in ("flips", "flips_upper", "flips_beyond_noise")},
        "numeric noise": {"flips": 100 * noise.flips, "decode flips": 100 * noise.decode_flips},
    }
    by_prompt = {name: sorted(float(t.kl.mean()) for t in each) for name, each in candidates.items()}
    agreeing = {name: survival(observed_fdt(flips_by_prompt(reference, each))) for name, each in candidates.items()}
    return {
        "divergence": figure.bars("Tokens that differ from the original's", "% of tokens", shares),
        "kl": figure.lines(
            "KL from the original, by prompt",
            "prompts, in order",
            "nats per token",
            {n: (range(1, len(v) + 1), v) for n, v in by_prompt.items()},
        ),
        "survival": figure.lines(
            "Completions that still agree", "tokens", "share", {n: (range(len(s) + 1), [1.0, *s]) for n, s in agreeing.items()}
        ),
    }
