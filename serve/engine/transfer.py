"""KV blocks out of one engine and into another: a request that moves goes on where it stood, and nothing is computed twice.

Promise: blocks enter the destination's prefix cache under their chain hashes, bit for bit, pinned until the request comes; then it is an
ordinary prefix hit, without a path of its own, and at most the last partial block is computed anew. What is of no use (another kind of
KV, a gap in the chain, no room) is left out, and is no error. Imports take free and cached blocks only, and leave one to grow into to
each running sequence and each request on its way here. Price: a copy of the bytes on each side by the thread that steps: ask by `slices`.
After: the KV connectors of vLLM and Dynamo, which fill blocks reserved for one request; copying in stages while decoding goes on is
Llumnix's (arXiv 2406.03243).

    source   kv_chain ────────── hashes ─> kv_missing(hashes, ticket)         destination
             kv_out(first, last) ─ bytes ─> kv_in(ticket, blocks)             … in stages, until little is left
             snapshot, cancel ───────────> add, first emission, kv_release(ticket)
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as Series

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serve.engine.attention import KvCache
from serve.engine.kv_blocks import NOTHING, KvBlocks
from serve.engine.native.cache import NativeCache
from serve.engine.schedule import Scheduler
from serve.engine.sequence import Sequence

__all__ = ["KvTransfer"]


class KvTransfer:
    """One engine's side of moves; called between steps, by the thread that steps. Times are on the clock of `Scheduler.plan`."""

    def __init__(self, scheduler: Scheduler, cache: KvCache | NativeCache | None) -> None:
        """`cache`: None for a model whose state is not in blocks; its chains are empty, and nothing comes in."""
        self._scheduler, self._cache = scheduler, cache
        self._pool, self._pins = scheduler.pool, scheduler.pins

    def chain(self, sequence: Sequence | None) -> tuple[bytes, ...]:
        """Hashes of a sequence's full computed blocks; none for one that waits, or whose window has passed its first blocks.

        Made here if nobody asked for them before, so it does not matter whether this engine keeps prefixes.
        """
        if sequence is None or self._cache is None or not sequence.running or sequence.num_behind:
            return ()
        size = self._scheduler.block_size
        return tuple(sequence.chain(sequence.computed // size, size))

    def out(self, sequence: Sequence | None, first: int = 0, last: int | None = None) -> KvBlocks:
        """The blocks [first, last) of the chain, as far as there are such."""
        hashes = self.chain(sequence)
        wanted = range(len(hashes))[first:last]
        if sequence is None or self._cache is None or not wanted:
            return NOTHING
        data = self._cache.copy_out([sequence.blocks[i] for i in wanted])
        self._scheduler.counters.kv_blocks_out += len(wanted)
        parent = hashes[wanted[0] - 1] if wanted[0] else b""
        return KvBlocks(self._cache.kv_kind, self._cache.bytes_per_block, parent, hashes[wanted.start : wanted.stop], data.numpy())

    def missing(self, hashes: Series[bytes], ticket: str | None, now_s: float) -> tuple[int, ...]:
        """Indices of the blocks that are not here; those that are here are pinned, given a ticket, lest they go before the others come."""
        blocks = [self._block_of(digest) for digest in hashes]
        if ticket is not None:
            self._begin(ticket, now_s)
            for block in blocks:
                if block is not None:
                    self._pins.pin(ticket, block)
        return tuple(i for i, block in enumerate(blocks) if block is None)

    def take_in(self, ticket: str, given: KvBlocks, now_s: float) -> int:
        """Put blocks in, pinned; how many of them, from the first, are here now."""
        cache = self._cache
        if cache is None or (given.kv_kind, given.block_bytes) != (cache.kv_kind, cache.bytes_per_block):
            return 0
        if given.parent and self._block_of(given.parent) is None:
            return 0  # behind a gap
        self._begin(ticket, now_s)
        num_here, fresh = 0, {}
        for row, digest in enumerate(given.hashes):
            if (block := self._block_of(digest)) is not None:
                self._pins.pin(ticket, block)
            elif self._has_room():
                fresh[row] = self._pins.allocate(ticket)
            else:
                break
            num_here += 1
        if fresh:
            data = _tensor(given.data)
            rows = data if len(fresh) == len(data) else data.index_select(0, torch.tensor(list(fresh)))
            cache.copy_in(list(fresh.values()), rows)
        for row, block in fresh.items():  # not before they hold what the hashes say
            self._pool.register(block, given.hashes[row])
        self._scheduler.counters.kv_blocks_in += len(fresh)
        return num_here

    def _has_room(self) -> bool:
        return self._pool.num_available > len(self._scheduler.running) + len(self._pins)

    def _begin(self, ticket: str, now_s: float) -> None:
        self._pins.expire(now_s)
        self._pins.use(ticket, now_s)

    def _block_of(self, digest: bytes) -> int | None:
        return next(iter(self._pool.find((digest,))), None)


def _tensor(data: NDArray[np.uint8]) -> Tensor:
    """The same memory, while `data` lives, to be read: what comes from Ray's object store may not be written; torch has no such tensors."""
    memory = (ctypes.c_uint8 * data.size).from_address(data.ctypes.data)
    return torch.frombuffer(memory, dtype=torch.uint8).view(data.shape)
