"""The whole decoder in one native call per step (stack.h), for the shapes it knows.

Promise: the logits of `model.Model` on the same weights with everything but weights and KV in float32; a token's logits do not depend on
its company, bitwise. Price: see stack.h; in Python some twenty microseconds a step. Shapes it does not know run piece by piece:
`model.Model` on native products and `cache.NativeAttention`.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from serve.engine.linear import Side, values, widened
from serve.engine.native.cache import NativeCache, Workspace
from serve.engine.native.library import load
from serve.engine.native.linear import NativeLinear
from serve.engine.parts import Layer, parts_of
from serve.engine.rope import Rotation
from serve.engine.shape import Shape
from serve.engine.weights import Weights

__all__ = ["NativeDecoder", "Pass", "supported"]

_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}


def supported(shape: Shape) -> bool:
    """Whether the native stack computes this decoder (the cache has a say of its own: `cache.fits`)."""
    dense = not any(shape.sparse) and shape.gated and not shape.parallel
    plain = shape.norm == "rms" and shape.qk_norm in (None, "head") and shape.activation in _ACTIVATIONS
    one_width = len({rope.dim for rope in shape.ropes}) <= 1
    return dense and plain and one_width and shape.hidden_size % 16 == 0 and shape.mlp_size % 16 == 0


_Product = ctypes.c_void_p * 3
"""`struct Product` of stack.h."""


class _Layer(ctypes.Structure):
    """`struct Layer` of stack.h."""

    _fields_ = (
        *((name, _Product) for name in ("qkv", "out", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("before_attention", "after_attention", "before_mlp", "after_mlp", "q_norm", "k_norm")),
        *((name, ctypes.c_int64) for name in ("window", "rope")),
    )


class _Decoder(ctypes.Structure):
    """`struct Decoder` of stack.h."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("num_layers", "hidden", "mlp", "heads", "kv_heads", "head_dim", "rotary", "vocab", "activation", "embedding_group")
        ),
        *((name, ctypes.c_double) for name in ("norm_eps", "attention_scale", "attention_cap", "logit_cap")),
        *((name, ctypes.c_double) for name in ("embedding_multiplier", "residual_multiplier", "logit_multiplier")),
        *((name, ctypes.c_void_p) for name in ("embedding", "embedding_scales", "layers", "norm")),
        ("head", _Product),
    )


class Pass:
    """What one call computes: tokens span after span, and the rows whose logits are wanted."""

    def __init__(self) -> None:
        self.plan: list[int] = []
        self.tables: list[int] = []
        self.tokens: list[int] = []
        self.rows: list[int] = []
        self.end = 0
        """The greatest position plus 1."""

    def add(self, start: int, tokens: list[int], blocks: Sequence[int], num_rows: int) -> None:
        """Tokens at positions start …, KV in `blocks`; logits of the last `num_rows`."""
        length = len(tokens)
        self.plan += (start, length, len(self.tables))
        self.tables += blocks
        self.tokens += tokens
        total = len(self.tokens)
        self.rows += range(total - num_rows, total)
        if start + length > self.end:
            self.end = start + length


class NativeDecoder:
    """Weights in the kernels' form, and `run`."""

    dtype, device = torch.bfloat16, torch.device("cpu")

    def __init__(self, shape: Shape, weights: Weights, max_length: int) -> None:
        self.shape = shape
        self._kept: list[NativeLinear | Tensor] = []  # what the C structs point to
        parts = parts_of(shape, weights)
        embedding, scales, group = self._table(weights, parts.embedding)
        self._layers = (_Layer * shape.num_layers)(*weights.side_by_side(partial(self._layer, weights), parts.layers))
        self._struct = _Decoder(
            shape.num_layers,
            shape.hidden_size,
            shape.mlp_size,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            shape.ropes[0].dim if shape.ropes else 0,
            shape.vocab_size,
            _ACTIVATIONS[shape.activation],
            group,
            shape.norm_eps,
            shape.attention_scale,
            shape.attention_soft_cap or 0.0,
            shape.logit_soft_cap or 0.0,
            shape.embedding_multiplier,
            shape.residual_multiplier,
            shape.logit_multiplier,
            embedding.data_ptr(),
            None if scales is None else scales.data_ptr(),
            ctypes.addressof(self._layers),
            self._norm(weights, parts.norm),
            self._product(weights, parts.head or parts.embedding),
        )
        self._address = ctypes.c_void_p(ctypes.addressof(self._struct))
        self._rotations = [Rotation(rope, max_length, self.device) for rope in shape.ropes]
        self._length = 0
        self._turn_upto(1)
        self._threads = torch.get_num_threads()
        self._workspace = Workspace()
        self._run = load("decoder").sterna_decode
        self._run.argtypes = (
            *[ctypes.c_void_p] * 4,
            ctypes.c_long,
            *[ctypes.c_void_p] * 3,
            ctypes.c_long,
            *[ctypes.c_void_p] * 4,
            ctypes.c_int,
        )
        self._run.restype = None

    def _layer(self, weights: Weights, index: int, part: Layer) -> _Layer:
        assert part.mlp is not None
        norms = (part.before_attention, part.after_attention, part.before_mlp, part.after_mlp, part.q_norm, part.k_norm)
        rope = self.shape.rope_of[index]
        return _Layer(
            *(self._product(weights, *modules) for modules in (part.qkv, part.out, part.mlp.gate_up, part.mlp.down)),
            *(None if norm is None else self._norm(weights, norm) for norm in norms),
            self.shape.windows[index] or 0,
            -1 if rope is None else rope,
        )

    def _table(self, weights: Weights, module: str) -> tuple[Tensor, Tensor | None, int]:
        """What tokens are looked up in: int8 with its scales and the columns of one, where it is stored in integers; else bf16."""
        stored = weights.stored(module)
        group = 0 if stored.scheme is None else stored.scheme.group or stored.columns
        if stored.scale is None or group % 16:
            return self._keep(widened(stored, self.dtype).contiguous()), None, 0
        return self._keep(values(stored)), self._keep(stored.scale.float().contiguous()), group

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept.append(tensor)
        return tensor

    def _product(self, weights: Weights, *modules: str) -> ctypes.Array[ctypes.c_void_p]:
        linear = weights.linear(*modules)
        parts = linear.parts if isinstance(linear, Side) else [linear]
        assert all(isinstance(part, NativeLinear) for part in parts), "weights that the kernels run: see linear.fits"
        self._kept += parts
        return _Product(*(part.matrix for part in parts))

    def _norm(self, weights: Weights, module: str) -> int:
        weight, _ = weights.norm(module, self.shape.norm_offset)
        return self._keep(weight.float().contiguous()).data_ptr()

    def _turn_upto(self, length: int) -> None:
        """Let the rotary tables reach `length` positions."""
        if length <= self._length:
            return
        tables = [rotation.upto(length) for rotation in self._rotations]
        self._tables = tables
        self._cosines, self._sines = ((ctypes.c_void_p * max(1, len(tables)))(*(t[i].data_ptr() for t in tables)) for i in range(2))
        self._length = min((t.shape[1] for t in tables), default=length)

    def run(self, work: Pass, cache: NativeCache, states: bool = False, out: Tensor | None = None) -> Tensor:
        """Logits [R, vocab] of the wanted rows, or their final states [R, hidden]; float32, into `out` if it is given.

        Writes the KV of every token.
        """
        self._turn_upto(work.end)
        num_rows = len(work.rows)
        plan, tables, tokens, rows = (array("i", values) for values in (work.plan, work.tables, work.tokens, work.rows))
        size = (num_rows, self.shape.hidden_size if states else self.shape.vocab_size)
        out = torch.empty(size) if out is None else out
        assert out.shape == size, "rows go where they are asked for"
        assert out.is_contiguous(), "the kernels write row after row"
        address = out.data_ptr()
        self._run(
            self._workspace.address,
            self._address,
            cache.address,
            plan.buffer_info()[0],
            len(plan) // 3,
            tables.buffer_info()[0],
            tokens.buffer_info()[0],
            rows.buffer_info()[0],
            num_rows,
            ctypes.addressof(self._cosines),
            ctypes.addressof(self._sines),
            None if states else address,
            address if states else None,
            self._threads,
        )
        return out
