"""Matrices that lie in a folder otherwise than they are run, made into what is: integers of any width, sparse ones, thin factors.

Promise: the stored values, exactly; what has no kernel costs bytes in memory and none of its speed is gained. Price: one pass when the
model is loaded, a slab of rows at a time where bits are unpacked.
Layouts: compressed-tensors' `pack-quantized` of 2 to 8 bits, a row's values one after the other and lowest bits first; of our own
`weight` [values] with `weight_bitmask` [N, ceil(K / 8)] and `weight_shape` (sparse), `weight` [N, rank] with `weight_right` [rank, K].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["scattered", "unpacked"]

_SLAB = 1 << 20


def unpacked(packed: Tensor, bits: int, columns: int) -> Tensor:
    """uint8 [N, ceil(K * bits / 8)] to uint8 [N, K]: each value plus 128, whatever it was stored with.

    >>> unpacked(torch.tensor([[0b11_001_010, 0b1]], dtype=torch.uint8), 3, 3).tolist()  # 2, 1 and 7, stored plus 4
    [[126, 125, 131]]
    """
    positions = torch.arange(columns) * bits
    low, shift = positions // 8, (positions % 8).to(torch.int16)
    mask, offset = (1 << bits) - 1, 128 - (1 << (bits - 1))
    slabs = []
    for slab in torch.nn.functional.pad(packed, (0, 1)).split(max(1, _SLAB // columns)):
        wide = slab.to(torch.int16)
        both = wide[:, low] | (wide[:, low + 1] << 8)  # the sign that may come of the high byte is masked away
        slabs.append((((both >> shift) & mask) + offset).to(torch.uint8))
    return torch.cat(slabs)


def scattered(values: Tensor, bitmask: Tensor, columns: int) -> Tensor:
    """The values [n] where the bitmask [N, ceil(K / 8)], lowest bits first, has ones, row after row: [N, K] with zeros elsewhere.

    >>> scattered(torch.tensor([5.0, 6.0]), torch.tensor([[0b10], [0b01]], dtype=torch.uint8), 2).tolist()
    [[0.0, 5.0], [6.0, 0.0]]
    """
    mask = torch.from_numpy(np.unpackbits(bitmask.numpy(), axis=1, count=columns, bitorder="little").astype(bool))
    return values.new_zeros(mask.shape).masked_scatter_(mask, values)
