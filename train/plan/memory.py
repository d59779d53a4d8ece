"""Bytes per worker of a training step: weights, gradients, optimizer, activations, logits, by ZeRO stage.

Promise: every term is a product you can check by hand; the activation terms are what autograd really saves for this repository's
dense recipe (tests compare them with saved-tensor hooks), not a rule of thumb. Price: none. Source: ZeRO (Rajbhandari et al. 2020)
for who holds what at which stage; DeepSpeed's mixed precision for the float32 master weights; the runtime term is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from train.plan.shapes import ModelShape

__all__ = ["Footprint", "Precision", "footprint"]

Precision = Literal["bfloat16", "float32"]

RUNTIME_BYTES = 700 * 2**20  # the interpreter, torch, transformers, DeepSpeed and a Ray worker before the model exists (CPU)
BUCKET_ELEMENTS = 20_000_000  # gradients exchanged at once: as train/zero.py configures it
LOGIT_ELEMENTS = 1 << 24  # logits that exist at once: as train/loss.py chunks them
FRAGMENTATION = 0.08  # of everything that is allocated and freed within a step


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Bytes on one worker, at the peak of a step."""

    weights: float
    """The weights that the forward pass reads."""
    gradients: float
    """Their gradients."""
    optimizer: float
    """Float32 master weights and Adam's two moments."""
    buckets: float
    """Flat buffers that gradients and weights pass through between workers."""
    activations: float
    """What autograd keeps of each layer for the way back."""
    logits: float
    """A chunk of the output layer's values, in float32 and in the model's type, and the float32 gradient of its matrix."""
    fragmentation: float
    """Allowance for an allocator that cannot reuse every hole."""
    runtime: float
    """Libraries and interpreter."""

    @property
    def total(self) -> float:
        """Sum of all terms."""
        return sum(self.terms().values())

    def terms(self) -> dict[str, float]:
        """Name -> bytes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def footprint(
    shape: ModelShape, *, zero_stage: int, num_workers: int, micro_batch: int, sequence_length: int, precision: Precision
) -> Footprint:
    """Peak bytes of one of `num_workers` workers that train `shape` with `micro_batch` sequences at a time.

    Stage 1 shards the optimizer's state over the workers, 2 the gradients too, 3 the weights too.
    """
    assert zero_stage in (0, 1, 2, 3)
    width = 2 if precision == "bfloat16" else 4
    parameters, tokens = shape.num_parameters, micro_batch * sequence_length
    share = {stage: 1 / num_workers if zero_stage >= stage else 1.0 for stage in (1, 2, 3)}
    activations = tokens * (shape.num_layers * layer_activation_bytes(shape, precision) + shape.hidden_size * (width + 4))
    chunk = min(tokens * shape.vocab_size, max(LOGIT_ELEMENTS, shape.vocab_size))
    logits = chunk * (2 * width + 4.0) + 4.0 * shape.vocab_size * shape.hidden_size
    return Footprint(
        weights=width * parameters * share[3],
        gradients=(width if precision == "float32" else width + 4) * parameters * share[2],  # bfloat16 is summed in float32
        optimizer=12 * parameters * share[1],
        buckets=2.0 * width * min(parameters, BUCKET_ELEMENTS) if num_workers > 1 else 0.0,
        activations=activations,
        logits=logits,
        fragmentation=FRAGMENTATION * (activations + logits + width * parameters),
        runtime=RUNTIME_BYTES,
    )


def layer_activation_bytes(shape: ModelShape, precision: Precision) -> float:
    """Bytes that one layer saves per token for the way back (fused attention: no score matrix).

    Feed-forward: gate, up, SiLU(gate) and their product. Attention: query and output, key and value. Residual stream: both norms'
    inputs in float32, their normalised values and their outputs.
    """
    width = 2 if precision == "bfloat16" else 4
    feed_forward = 4 * width * shape.intermediate_size
    attention = 2 * width * shape.head_dim * (shape.num_heads + shape.num_kv_heads)
    return feed_forward + attention + (4 * width + 2 * 4) * shape.hidden_size
