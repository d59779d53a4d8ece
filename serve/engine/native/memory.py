"""Memory for weights: aligned, and on huge pages where the system has them.

Promise: `aligned_bytes(size)` is uint8 [size] of zeros at an address that divides by 4096, of which only what is written to takes memory.
Small matrices share a mapping, so they too lie on huge pages: a stream over weights on 4 KiB pages spends a third of its time on address
translation. Price: a mapping lives as long as any tensor in it; up to `CHUNK` bytes of address space, not memory, are left over. What
comes and goes (`own_bytes`) has a mapping of its own, and leaves nothing behind.
"""

from __future__ import annotations

import mmap
import threading

import torch
from torch import Tensor

__all__ = ["aligned_bytes", "own_bytes"]

CHUNK = 64 << 20
_HUGE = 2 << 20
_lock = threading.Lock()
_room = torch.empty(0, dtype=torch.uint8)


def aligned_bytes(size: int) -> Tensor:
    """uint8 [size]."""
    global _room
    taken = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    if taken > CHUNK // 2:
        return own_bytes(size)
    with _lock:
        if taken > len(_room):
            _room = own_bytes(CHUNK)
        tensor, _room = _room[:size], _room[taken:]
    return tensor


def own_bytes(size: int) -> Tensor:
    """uint8 [size] that begins at a huge page, and goes with the tensor."""
    memory = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE
    return whole[start : start + size]
