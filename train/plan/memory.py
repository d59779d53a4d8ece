"""Bytes per worker of a training step: weights, gradients, optimizer, activations, logits, by ZeRO stage.

Promise: every term is a product you can check by hand; the activation terms are what autograd really saves for this repository's
recipes (tests compare them with saved-tensor hooks), not a rule of thumb; of a recurrent layer, whose chunked scan is not ours, they are
fitted to what it saves. Where the device is the processor, the copies that the guard and checkpoints make in host memory are counted.
Price: the worst case is assumed: packed documents, a guard, a checkpoint being written. Source: ZeRO (Rajbhandari et al. 2020) for who
holds what at which stage; DeepSpeed's mixed precision for the float32 master weights, plain torch's autocast where nothing is sharded;
checkpointing after Chen et al. 2016; the runtime term is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from train.plan.shapes import ModelShape

__all__ = ["Footprint", "Precision", "footprint", "host_bytes", "layer_activation_bytes"]

Precision = Literal["bfloat16", "float32"]

RUNTIME_BYTES = 700 * 2**20  # the interpreter, torch, transformers, DeepSpeed and a Ray worker before the model exists (CPU)
BUCKET_ELEMENTS = 20_000_000  # gradients exchanged at once: as train/zero.py configures it
LOGIT_ELEMENTS = 1 << 24  # logits that exist at once: as train/loss.py chunks them
FRAGMENTATION = 0.08  # of everything that is allocated and freed within a step
_TOLD_APART = ("dense", "sliding", "moe")  # what honours segments, and so gets packed documents and a mask (train/segments.py tries it)
LIVE_ELEMENTS = 200_000_000  # weights that stage 3 holds whole at once: as train/zero.py configures it
STATE_BYTES = 12  # of a parameter: its float32 master and Adam's two moments; what the guard remembers and a checkpoint holds


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Bytes on one worker, at the peak of a step."""

    weights: float
    """The weights that the forward pass reads."""
    gradients: float
    """Their gradients, and the flat copy of its share that a sharded update reads."""
    optimizer: float
    """Adam's two moments, and float32 master weights where the weights are not that themselves."""
    buckets: float
    """Flat buffers that gradients and weights pass through between workers."""
    activations: float
    """What autograd keeps of each layer for the way back."""
    logits: float
    """A chunk of the output layer's values, in float32 and in the model's type, and the float32 gradient of its matrix."""
    copies: float
    """What the guard remembers and a checkpoint copies, where the device is the processor; else it is host memory's (`host_bytes`)."""
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
    shape: ModelShape,
    *,
    zero_stage: int,
    num_workers: int,
    micro_batch: int,
    sequence_length: int,
    precision: Precision,
    offload: str = "none",
    gradient_checkpointing: bool = False,
    tensor: int = 1,
    sequence: int = 1,
    on_processor: bool = True,
    runtime_bytes: float = RUNTIME_BYTES,
) -> Footprint:
    """Peak bytes of one of `num_workers` workers that train `shape` with `micro_batch` sequences at a time.

    Stage 1 shards the optimizer's state over the workers, 2 the gradients too, 3 the weights too. `tensor` workers split each matrix of a
    layer, `sequence` workers each sequence; `offload` as in the recipe. `on_processor`: whether a worker's memory is the host's.
    """
    assert zero_stage in (0, 1, 2, 3)
    width = 2 if precision == "bfloat16" else 4
    tokens = micro_batch * sequence_length / sequence
    held = _held(shape, tensor)
    share = {stage: 1 / num_workers if zero_stage >= stage else 1.0 for stage in (1, 2, 3)}
    plain = _is_plain(zero_stage, num_workers, offload)
    kept_weights = (6 if width == 2 else 4) if plain else width * share[3]  # autocast keeps the casts for the way back
    if zero_stage == 3 and not plain:
        kept_weights = width * min(1.0, LIVE_ELEMENTS / held) + (0.0 if offload == "parameters" else kept_weights)
    moved = (width if precision == "float32" else width + 4) * share[2]  # bfloat16 is summed in float32
    moved += 4.0 / num_workers  # DeepSpeed's update reads its share from one flat copy
    activations = _activations(shape, tokens, width, precision, sequence_length, gradient_checkpointing, tensor)
    chunk = min(tokens * shape.vocab_size, max(LOGIT_ELEMENTS, shape.vocab_size))
    logits = chunk * (2 * width + 4.0) + 4.0 * shape.vocab_size * shape.hidden_size
    return Footprint(
        weights=kept_weights * held,
        gradients=4.0 * held if plain else 0.0 if offload == "parameters" else moved * held,
        optimizer=8.0 * held if plain else 0.0 if offload != "none" else STATE_BYTES * held * share[1],
        buckets=_buckets(shape, held, width, zero_stage, plain) if num_workers > 1 else 0.0,
        activations=activations,
        logits=logits,
        copies=host_bytes(shape, zero_stage=zero_stage, num_workers=num_workers, tensor=tensor) if on_processor else 0.0,
        fragmentation=FRAGMENTATION * (activations + logits + width * held),
        runtime=runtime_bytes,
    )


def host_bytes(shape: ModelShape, *, zero_stage: int, num_workers: int, tensor: int = 1, offload: str = "none") -> float:
    """Host memory of a worker: what the guard remembers, what a checkpoint copies while it is written, and what is offloaded."""
    held = _held(shape, tensor)
    remembered = held / num_workers if zero_stage else held
    offloaded = {"none": 0.0, "optimizer": STATE_BYTES + 4.0, "parameters": STATE_BYTES + 6.0}[offload] * held / num_workers
    return STATE_BYTES * (remembered + held / num_workers) + offloaded


def _held(shape: ModelShape, tensor: int) -> float:
    """Parameters that a worker has something of: the embedding is whole everywhere, matrices of layers are split."""
    return shape.num_embedding_parameters + (shape.num_parameters - shape.num_embedding_parameters) / tensor


def _is_plain(zero_stage: int, num_workers: int, offload: str) -> bool:
    """Whether plain torch trains it (train/steppers.py): float32 weights, gradients and moments, arithmetic by autocast."""
    return zero_stage == 0 or (num_workers == 1 and offload == "none")


def _buckets(shape: ModelShape, held: float, width: int, zero_stage: int, plain: bool) -> float:
    """Flat buffers that exist at once: gradients on their way, at stage 3 also weights that come and gradients in their owners' order."""
    if plain:  # a matrix larger than a bucket is one by itself
        return 4.0 * min(held, max(BUCKET_ELEMENTS, shape.vocab_size * shape.hidden_size))
    return (3.0 if zero_stage == 3 else 1.0) * width * min(held, BUCKET_ELEMENTS)


def _activations(
    shape: ModelShape, tokens: float, width: int, precision: Precision, sequence_length: int, checkpointed: bool, tensor: int
) -> float:
    """What is kept for the way back: each layer's, or, checkpointed, each layer's input and one layer's; norms and residuals are whole."""
    layer = layer_activation_bytes(shape, precision, sequence_length)
    whole = min(layer, (4.0 * width + 2 * 4) * shape.hidden_size)
    layer = whole + (layer - whole) / tensor
    mask = sequence_length if _masked(shape, sequence_length, packed=True) else 0  # a byte for each pair of tokens
    ends = shape.hidden_size * (width + 4) + mask
    if checkpointed:
        return tokens * (shape.num_layers * shape.hidden_size * width + layer + ends)
    return tokens * (shape.num_layers * layer + ends)


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
