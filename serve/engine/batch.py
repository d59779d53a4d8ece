"""What a step does: chunks of tokens to compute, and copies of blocks to make before.

Promise: plain records between the scheduler, which fills them, and the runner, which carries them out. Price: none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from serve.engine.sequence import Sequence

__all__ = ["Batch", "Chunk", "Counters"]


@dataclass(slots=True)
class Chunk:
    """Tokens [start, end) of a sequence's known tokens and draft, to be computed in this step."""

    sequence: Sequence
    start: int
    end: int
    samples: bool
    """Whether it reaches the last known token, so that the next can be drawn."""

    @property
    def draft(self) -> list[int]:
        """The drafted tokens in the chunk."""
        return self.sequence.draft if self.samples else []

    @property
    def tokens(self) -> list[int]:
        """The tokens to compute."""
        return self.sequence.tokens[self.start : self.end] + self.draft


@dataclass(slots=True)
class Batch:
    """A step's work: first the copies out, then the copies in, then the pass over the chunks."""

    chunks: list[Chunk] = field(default_factory=list)
    copies_out: list[tuple[int, list[int]]] = field(default_factory=list)
    """(key, blocks): keep a copy of these blocks, in this order, in host memory under the key (a new one each time)."""
    copies_in: list[tuple[int, list[int]]] = field(default_factory=list)
    """(key, blocks): write the *last* len(blocks) blocks of the key's copy into these blocks, then drop the copy. No blocks: just drop it.
    Each key comes in exactly once after it went out; a batch may hold copies and no chunks."""

    @property
    def num_tokens(self) -> int:
        """Tokens to compute."""
        return sum(chunk.end - chunk.start for chunk in self.chunks)

    @property
    def num_prompt_tokens(self) -> int:
        """Of these, tokens that were known before the last step, as those of a prompt are."""
        return sum(n for c in self.chunks if (n := c.end - c.start - len(c.draft)) > 1)

    @property
    def sampling(self) -> list[Chunk]:
        """The chunks whose sequences get new tokens."""
        return [chunk for chunk in self.chunks if chunk.samples]


@dataclass(slots=True)
class Counters:
    """Since the engine was loaded."""

    steps: int = 0
    started: int = 0
    finished: int = 0
    preemptions: int = 0
    swapped: int = 0
    """Preemptions whose KV was copied to host memory."""
    tokens_computed: int = 0
    tokens_generated: int = 0
    drafted: int = 0
    accepted: int = 0
    cached_tokens: int = 0
    """Prompt tokens that were found computed, or computed by another request meanwhile."""
    prefill_tokens: int = 0
    """Tokens computed that requests came with (prompt, and what was emitted elsewhere), again after a preemption too."""
    kv_blocks_out: int = 0
    """Blocks given to other engines."""
    kv_blocks_in: int = 0
    """Blocks taken from other engines."""
    queue_wait_s: float = 0.0
    """Seconds between coming and starting, summed over requests."""
