"""A weight on our own kernels: bf16, int8 or int4, packed once, for any number of tokens.

Promise: `layer(x)` is x @ weight.T + bias; a row's result is bitwise the same whatever its company and the number of threads (see
gemm.h). Price: the packed copy, and for the length of the packing the pages of the stored one; ~10 ms per 100 MB and core.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from serve.engine.native.library import load
from serve.engine.native.memory import aligned_bytes
from serve.engine.quantised import Scheme

__all__ = ["BF16", "INT4", "INT8", "Matrix", "NativeLinear", "fits"]

BF16, INT8, INT4 = range(3)
PANEL = 32
GROUPS = (32, 64, 128)
"""Columns per scale that the kernels know; multiples of the largest are repeated."""


class Matrix(ctypes.Structure):
    """`struct Matrix` of rows.h."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("n", ctypes.c_long),
        ("k", ctypes.c_long),
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("group", ctypes.c_long),
    )


def fits(scheme: Scheme | None) -> bool:
    """Whether the kernels run weights stored so (None: bf16)."""
    return scheme is None or scheme.group in (0, *GROUPS) or scheme.group % GROUPS[-1] == 0


class NativeLinear:
    """Weights [N, K] stored in `parts`, one below the other: bf16 [n, K], or uint8 as in `linear.Stored`. Rows may be strided.

    `scale` [N, groups] (any float type) and `columns` = K go with quantised parts. `bias` [N] or None.
    """

    def __init__(
        self,
        parts: Sequence[Tensor],
        scheme: Scheme | None = None,
        columns: int = 0,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        self._library = _library()
        self.kind = BF16 if scheme is None else INT8 if scheme.bits == 8 else INT4
        self.n, self.k = sum(len(part) for part in parts), columns or parts[0].shape[1]
        assert parts[0].dtype == (torch.bfloat16 if scheme is None else torch.uint8)
        groups, group = (None, 0) if scale is None or scheme is None else _grouped(scale, scheme.group, self.k)
        num_panels, panel = -(-self.n // PANEL), self._library.sterna_panel_bytes(self.kind, self.k, group)
        self._data = aligned_bytes(num_panels * panel)
        self._pack([part if part.stride(-1) == 1 else part.contiguous() for part in parts], group)
        self._scales = None
        if groups is not None and group:  # before the weights of each group
            stride = PANEL * (4 + group * (4 if self.kind == INT4 else 8) // 8)
            shape = (num_panels, groups.shape[1], PANEL)
            _fill(self._data.view(torch.float32).as_strided(shape, (panel // 4, stride // 4, 1)), groups)
        elif groups is not None:
            self._scales = aligned_bytes(num_panels * PANEL * 4).view(torch.float32)
            _fill(self._scales.view(num_panels, 1, PANEL), groups)
        self._bias = None if bias is None else bias.float().contiguous()
        self._matrix = Matrix(self.kind, self.n, self.k, self._data.data_ptr(), _address(self._scales), _address(self._bias), group)
        self.num_bytes = self._data.nbytes + sum(t.nbytes for t in (self._scales, self._bias) if t is not None)
        self.matrix = ctypes.addressof(self._matrix)
        """The address of the C struct, valid as long as this object lives."""

    def _pack(self, parts: Sequence[Tensor], group: int) -> None:
        count = len(parts)
        self._library.sterna_pack(
            self.kind,
            self.k,
            group,
            count,
            (ctypes.c_void_p * count)(*(part.data_ptr() for part in parts)),
            (ctypes.c_long * count)(*(len(part) for part in parts)),
            (ctypes.c_long * count)(*(part.stride(0) * part.element_size() for part in parts)),
            self._data.data_ptr(),
            1,  # models pack their matrices side by side (`Weights.side_by_side`): a team per matrix waits more than it works
        )

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """x [T, K] in bf16 or float32 -> [T, N] in `out_dtype`, by default x's own."""
        out_dtype = out_dtype or x.dtype
        assert {x.dtype, out_dtype} <= {torch.bfloat16, torch.float32}
        assert x.shape[1] == self.k
        x = x if x.stride(-1) == 1 else x.contiguous()
        m, y = len(x), torch.empty(len(x), self.n, dtype=out_dtype)
        memory = torch.empty(self._library.sterna_rows_bytes(m, self.k) + 64, dtype=torch.uint8)
        self._library.sterna_linear(
            self.matrix,
            x.data_ptr(),
            x.dtype == torch.float32,
            x.stride(0),
            m,
            y.data_ptr(),
            out_dtype == torch.float32,
            self.n,
            False,
            -(-memory.data_ptr() // 64) * 64,
            torch.get_num_threads(),
        )
        return y


@functools.cache
def _library() -> ctypes.CDLL:
    """The compiled kernels, with the types of their arguments."""
    library = load("linear")
    pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
    library.sterna_panel_bytes.argtypes = (integer, long, long)
    library.sterna_panel_bytes.restype = ctypes.c_size_t
    library.sterna_rows_bytes.argtypes = (long, long)
    library.sterna_rows_bytes.restype = ctypes.c_size_t
    library.sterna_pack.argtypes = (integer, long, long, long, pointer, pointer, pointer, pointer, integer)
    library.sterna_linear.argtypes = (pointer, pointer, integer, long, long, pointer, integer, long, integer, pointer, integer)
    return library


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _grouped(scale: Tensor, group: int, k: int) -> tuple[Tensor, int]:
    """Scales [N, groups] for groups the kernels know, and the columns of such a group (0: the whole row)."""
    if group > GROUPS[-1]:
        return scale.repeat_interleave(group // GROUPS[-1], 1)[:, : -(-k // GROUPS[-1])], GROUPS[-1]
    return scale, group


def _fill(panels: Tensor, scale: Tensor) -> None:
    """Scales [N, groups] to [panels, groups, 32]."""
    n, groups = scale.shape
    whole = n // PANEL
    panels[:whole] = scale[: whole * PANEL].view(whole, PANEL, groups).transpose(1, 2)
    if n % PANEL:
        panels[whole, :, : n % PANEL] = scale[whole * PANEL :].T
