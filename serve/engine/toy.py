"""A model for tests and for timing the engine's own work: its next token is a hash of what its KV blocks hold.

Promise: the face of `Runner`; logits after position p depend on exactly the (position, token) pairs that the sequence's blocks hold
for the positions p sees. So a block that was shared wrongly, freed too early, copied to the wrong place or not computed gives other
tokens, not merely other rounding. Price: none worth a word for texts of a few hundred tokens; it has no weights.
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass
from hashlib import shake_128

import torch
from torch import Tensor

from serve.engine.adapters import AdapterSet
from serve.engine.batch import Batch

__all__ = ["ToyRunner", "ToyTokenizer"]

Slot = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ToyShape:
    """What the engine asks of a shape."""

    vocab_size: int
    window: int | None
    eos_token_ids: tuple[int, ...] = (0,)
    max_length: int = 1 << 20


@dataclass(frozen=True, slots=True)
class ToyModel:
    """What the engine asks of a model."""

    shape: ToyShape
    dtype: torch.dtype = torch.float64


class ToyCache:
    """What the engine asks of a cache."""

    kv_kind = "toy"

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size, self.bytes_per_block = num_blocks, block_size, block_size * 2 * 8
        self.slots = torch.full((num_blocks, block_size, 2), -1)
        """(position, token), of which an empty slot has neither."""

    def copy_out(self, blocks: Series[int]) -> Tensor:
        """uint8 [len(blocks), bytes_per_block]."""
        return self.slots[list(blocks)].view(torch.uint8).view(len(blocks), -1)

    def copy_in(self, blocks: Series[int], data: Tensor) -> None:
        """What `copy_out` gave, into these blocks."""
        self.slots[list(blocks)] = data.clone().view(torch.int64).view(len(blocks), self.block_size, 2)


class ToyRunner:
    """`Runner` for the toy model: blocks of (position, token), and their copies."""

    def __init__(self, *, vocab_size: int, num_blocks: int, block_size: int, window: int | None = None) -> None:
        self.model = ToyModel(ToyShape(vocab_size, window))
        self.cache = ToyCache(num_blocks, block_size)
        self.adapters = AdapterSet()
        self.host: dict[int, Tensor] = {}
        """Copies by key, as the batches asked for."""

    def run(self, batch: Batch) -> Tensor:
        """Logits [R, vocab]: for each sampling chunk in turn, after its last known token and after each drafted one."""
        self._copy(batch)
        size = self.cache.block_size
        for chunk in batch.chunks:  # a pass writes all KV of a layer before it reads any
            for position, token in zip(range(chunk.start, chunk.end), chunk.tokens, strict=True):
                self.cache.slots[chunk.sequence.blocks[position // size], position % size] = torch.tensor((position, token))
        rows = []
        for chunk in batch.sampling:
            held = [(position, token) for position, token in self.cache.slots[chunk.sequence.blocks].flatten(0, 1).tolist()]
            rows += [self._row(held, last) for last in range(chunk.end - len(chunk.draft) - 1, chunk.end)]
        return torch.tensor(rows, dtype=torch.float64).view(len(rows), self.model.shape.vocab_size)

    def logits(self, tokens: Series[int]) -> Tensor:
        """Logits [T, vocab] after every token of a text."""
        held = list(enumerate(tokens))
        return torch.tensor([self._row(held, last) for last in range(len(held))], dtype=torch.float64)

    def _row(self, held: Series[Slot], last: int) -> list[float]:
        """Logits between 0 and 6.6 from what position `last` sees."""
        shape = self.model.shape
        seen = held[0 if shape.window is None else max(0, last - shape.window + 1) : last + 1]
        digest = shake_128(repr(seen).encode()).digest(2 * shape.vocab_size)
        return [int.from_bytes(digest[i : i + 2], "little") / 10_000 for i in range(0, len(digest), 2)]

    def _copy(self, batch: Batch) -> None:
        for key, blocks in batch.copies_out:
            assert key not in self.host, f"key {key} went out twice"
            self.host[key] = self.cache.copy_out(blocks)
        for key, blocks in batch.copies_in:
            copies = self.host.pop(key, None)
            if blocks:  # else dropped; a step that failed may not have made it
                assert copies is not None, f"key {key} never went out"
                self.cache.copy_in(blocks, copies[len(copies) - len(blocks) :])


class ToyTokenizer:
    """Token t is the letter t of the alphabet (0, the end token, is none)."""

    def encode(self, text: str) -> list[int]:
        """Letters to tokens."""
        return [ord(letter) - 96 for letter in text]

    def encode_plain(self, text: str) -> list[int]:
        """The same: nothing goes around a text."""
        return self.encode(text)

    def reader(self, skip_special_tokens: bool) -> ToyTokenizer:
        """Itself: the end token has no letter to show."""
        return self

    def decode(self, tokens: Series[int]) -> str:
        """Tokens to letters."""
        return "".join(chr(96 + token) for token in tokens if token)
