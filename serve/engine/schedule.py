"""Who runs in a step, how far, in which blocks, with which draft; and what a step's result changes.

Promise: a policy decides who starts, within a priority (see policy.py); who has started keeps its place: the first in line always advances,
so everyone who starts finishes, and streams that emit come before prompts. A step computes at most `max_tokens_per_step` tokens, and
no full block twice: a sequence whose next block another one is filling in this step waits for it and shares it. When blocks run out,
the last in line gives up its own, to be computed again or copied to host memory and back (its tokens are kept). Decides from values
alone: it imports neither torch nor Ray. Price: a few microseconds per running sequence and step.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

from serve.engine.batch import Batch, Chunk, Counters
from serve.engine.blocks import BlockPool
from serve.engine.pins import Pins
from serve.engine.policy import FirstCome, Policy
from serve.engine.request import Emission, Run
from serve.engine.sequence import Sequence
from serve.engine.swap import HostCopies
from serve.engine.waiting import WaitingLine, rank

__all__ = ["Batch", "Chunk", "Counters", "Scheduler"]


class Scheduler:
    """The live sequences and the block pool they share."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_size: int,
        max_sequences: int,
        max_tokens_per_step: int,
        prefix_cache: bool,
        policy: Policy | None = None,
        swap_blocks: int = 0,
        window: int | None = None,
        forget: Callable[[Sequence], None] | None = None,
    ) -> None:
        self.pool, self.pins = pool, Pins(pool)
        self.block_size, self.max_sequences, self.max_tokens = block_size, max_sequences, max_tokens_per_step
        self.prefix_cache = prefix_cache
        self.policy: Policy = policy or FirstCome()
        self.host = HostCopies(swap_blocks)
        self._window = window  # the widest of all layers'; None where a layer sees everything
        self._forget = forget  # told when a sequence gives up its state
        self.running: list[Sequence] = []  # by priority, then by first admission
        self.waiting = WaitingLine(self.policy)
        self.counters = Counters()
        self._underway: set[bytes] = set()  # hashes of the prompt blocks that this step's chunks fill

    # ---- plan ----------------------------------------------------------------------------------------------------

    def plan(self, verify_cost: float = 0.0, now_s: float = 0.0, max_prompt_tokens: int | None = None, draft_every: int = 1) -> Batch:
        """The next step. `verify_cost`: see `Drafter.propose`; `now_s`: the time on the clock of `Sequence.arrived_s`;
        `max_prompt_tokens`: at most so many tokens of prompts beside streams that emit; `draft_every`: steps after which a drafter
        is asked again that had nothing to propose."""
        chunks: dict[int, Chunk] = {}
        self._underway.clear()
        self.pins.expire(now_s)
        budget = self.max_tokens
        decoding: list[Sequence] = []
        behind: list[Sequence] = []
        for sequence in self.running:
            (decoding if sequence.pending == 1 else behind).append(sequence)
        for sequence in decoding:
            if sequence.running:  # it may have been preempted for one before it
                budget -= self._schedule(sequence, budget, chunks)
        for_prompts = max_prompt_tokens if decoding and max_prompt_tokens is not None else budget
        for sequence in behind:
            if sequence.running:
                used = self._schedule(sequence, min(budget, for_prompts), chunks)
                budget, for_prompts = budget - used, for_prompts - used
        self._draft([s for s in decoding if s.arrival in chunks], budget, verify_cost, chunks, draft_every)
        while self.waiting and (budget := min(for_prompts, self.max_tokens - sum(c.end - c.start for c in chunks.values()))) > 0:
            newcomer = self._admit(chunks, now_s)
            if newcomer is None:
                break
            for_prompts -= self._schedule(newcomer, budget, chunks)
        return Batch(list(chunks.values()), *self.host.take())

    def _schedule(self, sequence: Sequence, budget: int, chunks: dict[int, Chunk]) -> int:
        """Give a sequence as much of the budget as it can use, and blocks for it; returns the tokens used."""
        sequence.draft = []  # one left over from a step that failed
        size, num_known = self.block_size, len(sequence.tokens)
        in_prompt = num_known - sequence.computed > 1 and self.prefix_cache
        if in_prompt and self._others_compute(sequence):
            return 0
        start = sequence.computed
        end = min(num_known, start + budget)
        if end == start:
            return 0
        missing = -(-end // size) - len(sequence.blocks)
        self.pins.give_way(missing)
        while missing > 0 and missing > self.pool.num_available:
            victim = self.running[-1]
            self._preempt(victim, chunks)
            if victim is sequence:
                return 0
        for _ in range(missing):
            sequence.blocks.append(self.pool.allocate())
        chunks[sequence.arrival] = Chunk(sequence, start, end, end == num_known)
        if in_prompt:
            num_full = min(num_known, end + size - 1) // size
            self._underway.update(sequence.chain(num_full, size)[start // size :])
        return end - start

    def _others_compute(self, sequence: Sequence) -> bool:
        """Share what others have computed of its next blocks; whether the block after them is being filled in this very step.

        That one was scheduled before it, so whoever waits waits for progress, and the first in line for nobody."""
        at, size = sequence.computed // self.block_size, self.block_size
        if at < len(sequence.blocks):  # the next token has its block already
            return False
        hashes = sequence.chain((len(sequence.tokens) - 1) // size, size)  # the last token is always computed, for its logits
        for block in self.pool.find(hashes[at:]):
            self.pool.hold(block)
            sequence.blocks.append(block)
        shared = len(sequence.blocks) - at
        if shared:
            sequence.computed = sequence.num_registered = len(sequence.blocks)
            sequence.computed *= size
            self._count_cached(sequence, shared * size)
        return len(sequence.blocks) < len(hashes) and hashes[len(sequence.blocks)] in self._underway

    def _draft(self, sequences: list[Sequence], budget: int, verify_cost: float, chunks: dict[int, Chunk], every: int) -> None:
        """Let drafts use what budget and blocks are left over."""
        if verify_cost >= 1.0:  # not even a sure guess would pay
            return
        for sequence in sequences:
            sequence.draft_wait -= 1
            if sequence.drafter is None or 0 < sequence.draft_wait < every:
                continue
            room = min(budget, sequence.limit - len(sequence.tokens) - 1, self._room(sequence))
            if room <= 0:
                continue
            sequence.drafter.observe(sequence.tokens[sequence.num_observed :])
            sequence.num_observed = len(sequence.tokens)
            sequence.draft = sequence.drafter.propose(verify_cost)[:room]
            if not sequence.draft:
                sequence.draft_wait = every
                continue
            chunk = chunks[sequence.arrival]
            chunk.end += len(sequence.draft)
            budget -= len(sequence.draft)
            sequence.blocks.extend(self.pool.allocate() for _ in range(self._missing_blocks(sequence, chunk.end)))

    def _room(self, sequence: Sequence) -> int:
        """Tokens that fit behind the known ones without preempting anyone."""
        return (len(sequence.blocks) + self.pool.num_available) * self.block_size - len(sequence.tokens)

    def _missing_blocks(self, sequence: Sequence, end: int) -> int:
        return max(0, -(-end // self.block_size) - len(sequence.blocks))

    # ---- admission and preemption --------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; the caller has checked that it fits alone (`blocks_needed`)."""
        self.policy.arrive(sequence)
        self.waiting.add(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Forget a live sequence and free what it holds."""
        if sequence.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)
            if sequence.host_copy is not None:
                self.host.use(sequence.host_copy)
                sequence.host_copy = None
        self.policy.end(sequence)

    def blocks_needed(self, num_tokens: int) -> int:
        """The most blocks that a sequence of so many tokens holds at once."""
        needed = -(-num_tokens // self.block_size)
        if self._window is None:
            return needed
        return min(needed, -(-(self._window + self.max_tokens) // self.block_size) + 1)

    def _admit(self, chunks: dict[int, Chunk], now_s: float) -> Sequence | None:
        """Let the first in line run, if there is room for all it knows; it may push out those of lower priority."""
        priority = self.waiting.first().request.priority
        if len(self.running) >= self.max_sequences and self.running[-1].request.priority >= priority:
            return None
        for moved in self.policy.moved():
            self.waiting.move(moved)
        sequence = self.waiting.first()
        copied = self._hold_known(sequence)
        missing = self.blocks_needed(len(sequence.tokens)) - len(sequence.blocks) + sequence.num_behind
        if not self._make_room(priority, missing, chunks):
            self._give_back(sequence)
            return None
        if sequence.host_copy is not None:
            blocks = [self.pool.allocate() for _ in range(copied)]
            sequence.blocks += blocks
            self.host.use(sequence.host_copy, blocks)
            sequence.host_copy = None
        self.waiting.remove(sequence)
        sequence.running = True
        if sequence.started is None:
            self._start(sequence, now_s)
        insort(self.running, sequence, key=rank)
        return sequence

    def _start(self, sequence: Sequence, now_s: float) -> None:
        """What is said and counted once in a sequence's life here."""
        sequence.started = self.counters.started
        self.counters.started += 1
        self.counters.queue_wait_s += now_s - sequence.arrived_s
        self.policy.start(sequence, sequence.pending)
        self._count_cached(sequence, sequence.computed)

    def _hold_known(self, sequence: Sequence) -> int:
        """Hold what is known of its prefix, from the cache before its own host copy; returns the blocks to be copied in."""
        size, copy = self.block_size, sequence.host_copy
        may_share = self.prefix_cache or len(self.pins) > 0  # what came from another engine is for use, whatever is kept here
        most = (len(sequence.tokens) - 1) // size if may_share else 0  # the last token is computed, for its logits
        hashes = sequence.chain(most, size)
        windowed = self._window is not None
        found = self.pool.find_tail(hashes, lambda end: self._num_behind(end * size)) if windowed else self.pool.find(hashes)
        if copy is not None and copy.computed <= len(found) * size:
            copy = None
        sequence.computed = len(found) * size if copy is None else copy.computed
        first = self._num_behind(sequence.computed)
        for block in found[first:]:
            self.pool.hold(block)
        sequence.num_behind = first
        sequence.blocks = found + [0] * (first - len(found))  # what stands for a block behind the window is never seen
        sequence.num_registered = len(sequence.blocks)
        return 0 if copy is None else copy.first + copy.num_blocks - len(sequence.blocks)

    def _make_room(self, priority: int, missing: int, chunks: dict[int, Chunk]) -> bool:
        """A place in the batch, `missing` blocks, and one more for each running sequence, lest they push the newcomer out at once."""
        lower = [s for s in self.running if s.request.priority < priority]
        num_staying = len(self.running) - len(lower)
        if num_staying >= self.max_sequences:
            return False
        if lower or not self.running:  # others wait for the requests that pins are for, or for their tickets to end
            self.pins.give_way(missing + len(self.running))
        available = self.pool.num_available
        if missing + len(self.running) > available:
            available += sum(len(s.blocks) - s.num_behind for s in lower)
            if num_staying and missing + num_staying > available:
                return False
        while self.running and (len(self.running) >= self.max_sequences or missing + len(self.running) > self.pool.num_available):
            if self.running[-1].request.priority >= priority:
                return False  # blocks that several share were counted for each
            self._preempt(self.running[-1], chunks)
        return True

    def _preempt(self, sequence: Sequence, chunks: dict[int, Chunk]) -> None:
        """Take a sequence out of the batch; what stays of its blocks, cached or copied, is found again when it is readmitted."""
        chunks.pop(sequence.arrival, None)
        held = sequence.blocks[sequence.num_behind : -(-sequence.computed // self.block_size)]
        sequence.host_copy = self.host.make(held, sequence.num_behind, sequence.computed)
        self.counters.preemptions += 1
        self.counters.swapped += sequence.host_copy is not None
        self._stand_back(sequence)

    def _stand_back(self, sequence: Sequence) -> None:
        """From the batch to the line."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_preempted += 1
        self.waiting.add(sequence)

    def _release(self, sequence: Sequence) -> None:
        """The sequence leaves the batch, with nothing computed."""
        self._give_back(sequence)
        sequence.running = False
        if self._forget is not None:
            self._forget(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.release(reversed(sequence.blocks[sequence.num_behind :]))
        sequence.blocks = []
        sequence.computed = sequence.num_registered = sequence.num_behind = 0
        sequence.draft = []

    def _num_behind(self, computed: int) -> int:
        """Blocks at the front that no token from position `computed` on can see."""
        return 0 if self._window is None else max(0, computed - self._window + 1) // self.block_size

    def abandon(self, batch: Batch) -> None:
        """A batch was not computed, or not to its end: nothing of it counts.

        Who runs goes back to the line, for its new blocks hold anything; copies that the batch was to make are taken for lost.
        """
        lost = {key for key, _ in batch.copies_out}
        for sequence in self.waiting:
            if sequence.host_copy is not None and sequence.host_copy.key in lost:
                self.host.use(sequence.host_copy)
                sequence.host_copy = None
        self.host.drop(key for key, _ in batch.copies_in)
        while self.running:
            self._stand_back(self.running[-1])

    # ---- commit --------------------------------------------------------------------------------------------------

    def commit(self, batch: Batch, chosen: list[Run]) -> list[Emission]:
        """Advance every chunk's sequence, finish and free; `chosen` goes with `batch.sampling`."""
        self.counters.steps += bool(batch.chunks)
        self.counters.tokens_computed += batch.num_tokens
        runs = iter(chosen)
        emissions = []
        for chunk in batch.chunks:
            self._count_prefill(chunk)
            if chunk.samples:
                emissions.append(self._advance(chunk, next(runs)))
            else:
                chunk.sequence.computed = chunk.end
                self._register(chunk.sequence)
        return emissions

    def _advance(self, chunk: Chunk, run: Run) -> Emission:
        """Take in what a sequence got: the drafts that held and one token more, up to its end."""
        sequence, num_drafted, num_accepted, tokens = chunk.sequence, len(chunk.draft), run.num_accepted, run.tokens
        if num_drafted:
            assert sequence.drafter is not None, "only a drafter drafts"
            sequence.drafter.judge(num_accepted)
            if num_accepted < num_drafted:
                sequence.drafter.recycle(sequence.draft[num_accepted:], run.likeliest[num_accepted + 1 :])
            sequence.draft = []
        sequence.computed = chunk.end - num_drafted + num_accepted  # the KV of accepted drafts is that of known tokens
        shown = ""
        for count, token in enumerate(tokens, 1):
            shown += sequence.append(token)
            if sequence.finish_reason:
                tokens = tokens[:count]
                sequence.computed = min(sequence.computed, len(sequence.tokens))
                break
        self._count(sequence, len(tokens), num_drafted, min(num_accepted, len(tokens)))
        self._register(sequence)
        if sequence.finish_reason:
            self.running.remove(sequence)
            self._release(sequence)
            self.counters.finished += 1
            self.policy.end(sequence)
        return sequence.emission(tokens, shown, run.logprobs and run.logprobs[: len(tokens)])

    def _count(self, sequence: Sequence, num_emitted: int, num_drafted: int, num_accepted: int) -> None:
        self.policy.serve(sequence, num_emitted)
        counters = self.counters
        counters.tokens_generated += num_emitted
        if num_drafted:
            sequence.num_drafted += num_drafted
            sequence.num_accepted += num_accepted
            counters.drafted += num_drafted
            counters.accepted += num_accepted

    def _count_prefill(self, chunk: Chunk) -> None:
        num_prefill = max(0, min(chunk.end, chunk.sequence.num_given) - chunk.start)
        chunk.sequence.num_computed_tokens += num_prefill
        self.counters.prefill_tokens += num_prefill

    def _count_cached(self, sequence: Sequence, num_tokens: int) -> None:
        """Count prompt tokens that need not be computed, in a sequence's first life only."""
        if not sequence.num_preempted:
            cached = min(num_tokens, sequence.num_prompt_tokens - sequence.num_cached_tokens)
            sequence.num_cached_tokens += cached
            self.counters.cached_tokens += cached

    def _register(self, sequence: Sequence) -> None:
        """Offer newly filled blocks to the prefix cache, then give back those that no later token sees."""
        num_full = sequence.computed // self.block_size
        if self.prefix_cache and num_full > sequence.num_registered:
            hashes = sequence.chain(num_full, self.block_size)
            for i in range(sequence.num_registered, num_full):
                self.pool.register(sequence.blocks[i], hashes[i])
            sequence.num_registered = num_full
        if self._window is not None and (behind := self._num_behind(sequence.computed)) > sequence.num_behind:
            self.pool.release(sequence.blocks[sequence.num_behind : behind])
            sequence.num_behind = behind

    def check(self) -> None:
        """Assert what always holds between steps: every block's readers are its holders, and each copy has its owner."""
        readers = [0] * self.pool.total
        for sequence in self.running:
            assert sequence.running, "a sequence runs and does not know"
            assert sequence.computed < len(sequence.tokens), "everything known is computed, so nothing will happen"
            assert -(-sequence.computed // self.block_size) <= len(sequence.blocks), "computed beyond its blocks"
            for block in sequence.blocks[sequence.num_behind :]:
                readers[block] += 1
        for block, count in self.pins.readers().items():
            readers[block] += count
        assert all(not s.blocks and not s.running and not s.computed for s in self.waiting), "a waiting sequence holds something"
        assert readers == [self.pool.num_readers(block) for block in range(self.pool.total)], "a block's readers are not its holders"
        self.pool.check()
        self.host.check([s.host_copy for s in self.waiting if s.host_copy is not None])
        self.waiting.check()
        assert self.running == sorted(self.running, key=rank), "out of line"
