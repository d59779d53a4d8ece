"""Bytes per worker of a training step: weights, gradients, optimizer, activations, logits, by ZeRO stage.

Promise: every term is a product you can check by hand; the activation terms are what autograd really saves for this repository's
recipes (tests compare them with saved-tensor hooks), not a rule of thumb; of a recurrent layer, whose chunked scan is not ours, they are
fitted to what it saves. Price: the worst case is assumed: packed documents, a guard, a checkpoint being written. Source: ZeRO
(Rajbhandari et al. 2020) for who holds what at which stage; DeepSpeed's mixed precision for the float32 master weights; the runtime term is
measured.
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
_TOLD_APART = ("dense", "sliding", "moe")  # what honours segments, and so gets packed documents and a mask (train/segments.py tries it)


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
    copies: float
    """Weights and moments once more in host memory: what the guard remembers, and what a checkpoint is being written from."""
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

    Stage 1 shards the optimizer's state over the workers (and with it what the guard copies), 2 the gradients too, 3 the weights too; of a
    checkpoint every worker writes its share at every stage.
    """
    assert zero_stage in (0, 1, 2, 3)
    width = 2 if precision == "bfloat16" else 4
    parameters, tokens = shape.num_parameters, micro_batch * sequence_length
    share = {stage: 1 / num_workers if zero_stage >= stage else 1.0 for stage in (1, 2, 3)}
    layers = shape.num_layers * layer_activation_bytes(shape, precision, sequence_length)
    mask = sequence_length if _masked(shape, sequence_length, packed=True) else 0  # a byte for each pair of tokens
    activations = tokens * (layers + shape.hidden_size * (width + 4) + mask)
    chunk = min(tokens * shape.vocab_size, max(LOGIT_ELEMENTS, shape.vocab_size))
    logits = chunk * (2 * width + 4.0) + 4.0 * shape.vocab_size * shape.hidden_size
    return Footprint(
        weights=width * parameters * share[3],
        gradients=(width if precision == "float32" else width + 4) * parameters * share[2],  # bfloat16 is summed in float32
        optimizer=12 * parameters * share[1],
        buckets=2.0 * width * min(parameters, BUCKET_ELEMENTS) if num_workers > 1 else 0.0,
        activations=activations,
        logits=logits,
        copies=12 * parameters * (share[1] + 1 / num_workers),
        fragmentation=FRAGMENTATION * (activations + logits + width * parameters),
        runtime=RUNTIME_BYTES,
    )


def layer_activation_bytes(shape: ModelShape, precision: Precision, sequence_length: int, *, packed: bool = True) -> float:
    """Bytes that a layer saves per token for the way back, on average over the layers; `packed`: several documents to a sequence.

    Feed-forward: gate, up, SiLU(gate) and their product. Attention: query and output, key and value; fused, so without a score matrix.
    Residual stream: both norms' inputs in float32, their normalised values and their outputs.
    """
    width = 2 if precision == "bfloat16" else 4
    if shape.architecture == "alibi":
        return _alibi_bytes(shape, width, sequence_length)
    attention = _attention_bytes(shape, width, sequence_length, _masked(shape, sequence_length, packed=packed))
    mixers = [attention if shape.attends(i) else _recurrent_bytes(shape) for i in range(shape.num_layers)]
    mixer = sum(mixers) / shape.num_layers
    if shape.architecture == "ssm":
        return mixer
    return mixer + _feed_forward_bytes(shape, width) + (4 * width + 2 * 4) * shape.hidden_size


def _masked(shape: ModelShape, sequence_length: int, *, packed: bool) -> bool:
    """Whether attention is given a mask: for its window, or to keep packed documents apart."""
    return 0 < shape.window < sequence_length or (packed and shape.architecture in _TOLD_APART)


def _attention_bytes(shape: ModelShape, width: int, sequence_length: int, masked: bool) -> float:
    plain = 2.0 * width * shape.head_dim * (shape.num_heads + shape.num_kv_heads)
    if not masked:
        return plain
    # a mask: keys and values are repeated for the query heads, and every layer has the mask as numbers
    return plain + 2.0 * width * shape.head_dim * (shape.num_heads - shape.num_kv_heads) + width * sequence_length


def _feed_forward_bytes(shape: ModelShape, width: int) -> float:
    one = 4.0 * width * shape.intermediate_size
    # an expert's tokens are gathered before it, and weighted after it
    return one if shape.architecture != "moe" else shape.experts_per_token * (one + 2.0 * width * shape.hidden_size)


def _alibi_bytes(shape: ModelShape, width: int, sequence_length: int) -> float:
    """MPT: its attention is written out, so its scores are saved (their softmax in float32); norms' inputs are of the model's type."""
    scores = shape.num_heads * sequence_length * (4 if width == 4 else 6)
    return width * (2.0 * shape.intermediate_size + 8.0 * shape.hidden_size) + scores


def _recurrent_bytes(shape: ModelShape) -> float:
    """Of the scans in transformers' own torch, which compute in float32 whatever the model's type, in chunks of 64 tokens."""
    per_value, per_head = (110, 1600) if shape.architecture == "linear" else (72, 2300)
    return float(per_value * shape.state_heads * shape.state_head_dim + per_head * shape.state_heads)
