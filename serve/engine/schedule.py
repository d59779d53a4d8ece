"""Who runs in a step, how far, in which blocks, with which draft; and what a step's result changes.

Promise: first come, first served; the oldest request always advances, so every request finishes; a step computes at most
`max_tokens_per_step` tokens; when blocks run out, the youngest sequence gives up its blocks and is computed again later (its tokens
are kept). Decides from values alone: it imports neither torch nor Ray. Price: a few microseconds per running sequence and step.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from serve.engine.blocks import BlockPool
from serve.engine.request import Emission, Run
from serve.engine.sequence import Sequence

__all__ = ["Batch", "Chunk", "Scheduler"]


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
    def sampling(self) -> list[Chunk]:
        """The chunks whose sequences get new tokens."""
        return [chunk for chunk in self.chunks if chunk.samples]


@dataclass(slots=True)
class Counters:
    """Since the engine was loaded."""

    steps: int = 0
    preemptions: int = 0
    tokens_computed: int = 0
    tokens_generated: int = 0
    drafted: int = 0
    accepted: int = 0
    cached_tokens: int = 0


class Scheduler:
    """The live sequences and the block pool they share."""

    def __init__(self, pool: BlockPool, *, block_size: int, max_sequences: int, max_tokens_per_step: int, prefix_cache: bool) -> None:
        self.pool = pool
        self.block_size, self.max_sequences, self.max_tokens = block_size, max_sequences, max_tokens_per_step
        self.prefix_cache = prefix_cache
        self.running: list[Sequence] = []  # oldest first, as is `waiting`; every running one is older than every waiting one
        self.waiting: list[Sequence] = []
        self.counters = Counters()

    # ---- plan ----------------------------------------------------------------------------------------------------

    def plan(self, verify_cost: float = 0.0) -> Batch:
        """The next step. `verify_cost`: see `Drafter.propose`."""
        chunks: dict[int, Chunk] = {}
        budget = self.max_tokens
        decoding = [s for s in self.running if s.pending == 1]
        behind = [s for s in self.running if s.pending > 1]
        for sequence in decoding + behind:
            if sequence in self.running:  # it may have been preempted for one before it
                budget -= self._schedule(sequence, budget, chunks)
        self._draft([s for s in decoding if s.arrival in chunks], budget, verify_cost, chunks)
        budget = self.max_tokens - sum(c.end - c.start for c in chunks.values())
        while budget > 0 and self._admit():
            budget -= self._schedule(self.running[-1], budget, chunks)
        return Batch(list(chunks.values()))

    def _schedule(self, sequence: Sequence, budget: int, chunks: dict[int, Chunk]) -> int:
        """Give a sequence as much of the budget as it can use, and blocks for it; returns the tokens used."""
        sequence.draft = []  # one left over from a step that failed
        end = min(len(sequence.tokens), sequence.computed + budget)
        if end == sequence.computed:
            return 0
        while (missing := self._missing_blocks(sequence, end)) > self.pool.num_available:
            victim = self.running[-1]
            chunks.pop(victim.arrival, None)
            self._preempt(victim)
            if victim is sequence:
                return 0
        sequence.blocks.extend(self.pool.allocate() for _ in range(missing))
        chunks[sequence.arrival] = Chunk(sequence, sequence.computed, end, samples=end == len(sequence.tokens))
        return end - sequence.computed

    def _draft(self, sequences: list[Sequence], budget: int, verify_cost: float, chunks: dict[int, Chunk]) -> None:
        """Let drafts use what budget and blocks are left over."""
        for sequence in sequences:
            if sequence.drafter is None:
                continue
            room = min(budget, sequence.limit - len(sequence.tokens) - 1, self._room(sequence))
            if room <= 0:
                continue
            sequence.drafter.observe(sequence.tokens[sequence.num_observed :])
            sequence.num_observed = len(sequence.tokens)
            sequence.draft = sequence.drafter.propose(verify_cost)[:room]
            chunk = chunks[sequence.arrival]
            chunk.end += len(sequence.draft)
            budget -= len(sequence.draft)
            sequence.blocks.extend(self.pool.allocate() for _ in range(self._missing_blocks(sequence, chunk.end)))

    def _room(self, sequence: Sequence) -> int:
        """Tokens that fit behind the known ones without preempting anyone."""
        return (len(sequence.blocks) + self.pool.num_available) * self.block_size - len(sequence.tokens)

    def _missing_blocks(self, sequence: Sequence, end: int) -> int:
        return max(0, -(-end // self.block_size) - len(sequence.blocks))

    def _admit(self) -> bool:
        """Let the oldest waiting sequence run, if there is room for all it knows."""
        if not self.waiting or len(self.running) >= self.max_sequences:
            return False
        sequence = self.waiting[0]
        shared = self._find_prefix(sequence)
        for block in shared:
            self.pool.hold(block)
        if self.running and self._missing_blocks(sequence, len(sequence.tokens)) - len(shared) > self.pool.num_available:
            self.pool.release(reversed(shared))
            return False
        self.waiting.pop(0)
        self.running.append(sequence)
        sequence.blocks = shared
        sequence.computed = sequence.num_registered = 0
        sequence.computed = len(shared) * self.block_size
        sequence.num_registered = len(shared)
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = min(sequence.computed, sequence.num_prompt_tokens)
            self.counters.cached_tokens += sequence.num_cached_tokens
        return True

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """Known blocks of its prefix; the last token is always computed, for its logits."""
        if not self.prefix_cache:
            return []
        return self.pool.find(sequence.chain((len(sequence.tokens) - 1) // self.block_size, self.block_size))

    def _preempt(self, sequence: Sequence) -> None:
        """Give up its blocks; what of them stays cached is found again when it is readmitted."""
        self.running.remove(sequence)
        self._release(sequence)
        insort(self.waiting, sequence, key=lambda s: s.arrival)
        self.counters.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(reversed(sequence.blocks))
        sequence.blocks = []
        sequence.computed = sequence.num_registered = 0
        sequence.draft = []

    # ---- commit --------------------------------------------------------------------------------------------------

    def commit(self, batch: Batch, chosen: list[Run]) -> list[Emission]:
        """Advance every chunk's sequence, finish and free; `chosen` goes with `batch.sampling`."""
        self.counters.steps += 1
        self.counters.tokens_computed += batch.num_tokens
        runs = iter(chosen)
        emissions = []
        for chunk in batch.chunks:
            if chunk.samples:
                emissions.append(self._advance(chunk, next(runs)))
            else:
                chunk.sequence.computed = chunk.end
                self._register(chunk.sequence)
        return emissions

    def _advance(self, chunk: Chunk, run: Run) -> Emission:
        sequence, num_drafted, num_accepted = chunk.sequence, len(chunk.draft), run.num_accepted
        sequence.computed = chunk.end - num_drafted + num_accepted  # the KV of accepted drafts is that of known tokens
        sequence.draft = []
        if sequence.drafter is not None and num_drafted:
            sequence.drafter.judge(num_accepted)
        kept, shown = [], ""
        for token in run.tokens:
            kept.append(token)
            shown += sequence.append(token)
            if sequence.finish_reason:
                break
        sequence.num_drafted += num_drafted
        sequence.num_accepted += min(num_accepted, len(kept))
        self._count(len(kept), num_drafted, min(num_accepted, len(kept)))
        if sequence.finish_reason:
            sequence.computed = min(sequence.computed, len(sequence.tokens))
        self._register(sequence)
        if sequence.finish_reason:
            self.running.remove(sequence)
            self._release(sequence)
        return sequence.emission(kept, shown, run.logprobs and run.logprobs[: len(kept)])

    def _count(self, generated: int, drafted: int, accepted: int) -> None:
        self.counters.tokens_generated += generated
        self.counters.drafted += drafted
        self.counters.accepted += accepted

    def _register(self, sequence: Sequence) -> None:
        """Offer newly filled blocks to the prefix cache."""
        if not self.prefix_cache:
            return
        num_full = sequence.computed // self.block_size
        if num_full > sequence.num_registered:
            hashes = sequence.chain(num_full, self.block_size)
            for i in range(sequence.num_registered, num_full):
                self.pool.register(sequence.blocks[i], hashes[i])
            sequence.num_registered = num_full

    # ---- come and go ---------------------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; the caller has checked that it fits alone."""
        self.waiting.append(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Forget a live sequence and free what it holds."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)
