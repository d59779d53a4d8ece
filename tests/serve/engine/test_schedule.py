"""Scheduling, without a model: budgets hold, blocks are conserved, the oldest advances, everyone finishes."""

from __future__ import annotations

import random
from collections.abc import Sequence as Series

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.blocks import BlockPool, root_hash
from serve.engine.request import Request, Run, Sampling
from serve.engine.schedule import Batch, Scheduler
from serve.engine.sequence import Sequence
from serve.engine.text import TextStream

SIZE = 4


class Silent:
    """A tokenizer without text."""

    def decode(self, tokens: Series[int]) -> str:
        return ""


class Parrot:
    """Drafts a fixed number of tokens."""

    def __init__(self, length: int) -> None:
        self.length, self.judged = length, 0

    def observe(self, tokens: Series[int]) -> None:
        pass

    def propose(self, verify_cost: float) -> list[int]:
        return [1] * self.length if verify_cost < 1 else []

    def judge(self, num_accepted: int) -> None:
        self.judged += 1


def make_sequence(arrival: int, prompt: Series[int], max_tokens: int, draft: int = 0) -> Sequence:
    request = Request(id=str(arrival), prompt=tuple(prompt), sampling=Sampling(max_tokens=max_tokens, seed=0))
    return Sequence(
        request=request,
        arrival=arrival,
        limit=len(request.prompt) + max_tokens,
        stop_ids=frozenset({0}),
        text=TextStream(Silent(), request.prompt),
        drafter=Parrot(draft) if draft else None,
        root=root_hash("model"),
    )


def make_scheduler(num_blocks: int, max_sequences: int = 4, max_tokens: int = 16, prefix_cache: bool = True) -> Scheduler:
    pool = BlockPool(num_blocks)
    return Scheduler(pool, block_size=SIZE, max_sequences=max_sequences, max_tokens_per_step=max_tokens, prefix_cache=prefix_cache)


def answer(batch: Batch, rng: random.Random) -> list[Run]:
    """What a model might choose: some drafts hold, any token follows (0 ends the sequence)."""
    runs = []
    for chunk in batch.sampling:
        held = rng.randint(0, len(chunk.draft))
        runs.append(Run([*chunk.draft[:held], rng.choice([0, 2, 3, 4, 5, 6])]))
    return runs


def spans(batch: Batch) -> dict[str, tuple[int, int, bool]]:
    return {chunk.sequence.request.id: (chunk.start, chunk.end, chunk.samples) for chunk in batch.chunks}


def test_prompts_are_computed_in_chunks_and_streams_come_first() -> None:
    scheduler = make_scheduler(64, max_tokens=16)
    scheduler.add(make_sequence(0, [5] * 4, 8))
    batch = scheduler.plan()
    assert spans(batch) == {"0": (0, 4, True)}
    scheduler.commit(batch, [Run([7])])
    scheduler.add(make_sequence(1, range(100, 140), 8))
    batch = scheduler.plan()
    assert spans(batch) == {"0": (4, 5, True), "1": (0, 15, False)}
    scheduler.commit(batch, [Run([7])])
    assert spans(scheduler.plan()) == {"0": (5, 6, True), "1": (15, 30, False)}


def test_a_draft_takes_what_the_budget_leaves() -> None:
    scheduler = make_scheduler(64, max_tokens=6)
    for arrival in range(2):
        scheduler.add(make_sequence(arrival, [5 + arrival] * 2, 20, draft=9))
    scheduler.commit(scheduler.plan(), [Run([7]), Run([7])])
    assert spans(scheduler.plan()) == {"0": (2, 7, True), "1": (2, 3, True)}


def test_a_draft_never_passes_the_end_and_never_preempts() -> None:
    scheduler = make_scheduler(2)
    sequence = make_sequence(0, [5] * 4, 3, draft=9)
    scheduler.add(sequence)
    scheduler.commit(scheduler.plan(), [Run([7])])
    batch = scheduler.plan()
    assert len(batch.chunks[0].draft) == 1  # with the token that follows a draft, the third and last
    tight = make_scheduler(1)
    tight.add(make_sequence(0, [5, 5], 2, draft=9))
    tight.commit(tight.plan(), [Run([7])])
    assert tight.plan().chunks[0].draft == []


def test_expensive_tokens_are_not_drafted() -> None:
    scheduler = make_scheduler(8)
    scheduler.add(make_sequence(0, [5] * 4, 9, draft=3))
    scheduler.commit(scheduler.plan(), [Run([7])])
    assert len(scheduler.plan(verify_cost=0.1).chunks[0].draft) == 3
    assert scheduler.plan(verify_cost=1.5).chunks[0].draft == []


def test_the_youngest_gives_way_and_comes_back_in_its_place() -> None:
    scheduler = make_scheduler(5, prefix_cache=False)
    old, young = make_sequence(0, [5] * 7, 9), make_sequence(1, [6] * 8, 8)
    for sequence in (old, young, make_sequence(2, [7] * 3, 2)):
        scheduler.add(sequence)
    scheduler.commit(scheduler.plan(), [Run([7]), Run([7])])
    scheduler.commit(scheduler.plan(), [Run([7]), Run([7])])  # the young one took the last block
    batch = scheduler.plan()
    assert spans(batch) == {"0": (8, 9, True)}
    assert [s.arrival for s in scheduler.waiting] == [1, 2]
    assert scheduler.counters.preemptions == 1
    assert young.tokens == [6] * 8 + [7, 7], "what was emitted is kept"


def test_drop_works_wherever_a_sequence_is() -> None:
    scheduler = make_scheduler(8, max_sequences=1)
    first, second = make_sequence(0, [5] * 9, 2), make_sequence(1, [5], 2)
    scheduler.add(first)
    scheduler.add(second)
    scheduler.plan()
    scheduler.drop(second)
    scheduler.drop(first)
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler.pool.num_held == 0


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), num_blocks=st.integers(8, 30), max_tokens=st.integers(4, 40), prefix_cache=st.booleans())
def test_everyone_finishes_and_nothing_is_lost(seed: int, num_blocks: int, max_tokens: int, prefix_cache: bool) -> None:
    rng = random.Random(seed)
    scheduler = make_scheduler(num_blocks, max_sequences=4, max_tokens=max_tokens, prefix_cache=prefix_cache)
    emitted: dict[str, int] = {}
    finished: set[str] = set()
    limits = {}
    for arrival in range(9):
        prompt = [rng.choice([1, 2]) for _ in range(rng.randint(1, 16))]
        limits[str(arrival)] = rng.randint(1, 16)
        scheduler.add(make_sequence(arrival, prompt, limits[str(arrival)], draft=rng.choice([0, 3])))
    for _ in range(2000):
        if not (scheduler.running or scheduler.waiting):
            break
        oldest = min(s.arrival for s in [*scheduler.running, *scheduler.waiting])
        batch = scheduler.plan(verify_cost=rng.random())
        assert 0 < batch.num_tokens <= max_tokens
        assert oldest in {chunk.sequence.arrival for chunk in batch.chunks}, "the oldest always advances"
        for chunk in batch.chunks:
            assert len(chunk.tokens) == chunk.end - chunk.start
            assert chunk.end <= len(chunk.sequence.blocks) * SIZE
        for emission in scheduler.commit(batch, answer(batch, rng)):
            emitted[emission.request_id] = emitted.get(emission.request_id, 0) + len(emission.tokens)
            assert emission.request_id not in finished
            if emission.finish_reason:
                finished.add(emission.request_id)
        scheduler.pool.check()
        assert all(s.computed < len(s.tokens) for s in scheduler.running)
        ages = [s.arrival for s in scheduler.running + scheduler.waiting]
        assert ages == sorted(ages)
    assert finished == set(limits)
    assert scheduler.pool.num_held == 0
    assert all(emitted[name] <= limits[name] for name in limits)
    assert scheduler.counters.tokens_generated == sum(emitted.values())
