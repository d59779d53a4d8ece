"""Scheduling, without a model: budgets hold, blocks are conserved, the oldest advances, everyone finishes."""

from __future__ import annotations

import random
from collections.abc import Sequence as Series
from typing import Any

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
        self.recycled: list[tuple[list[int], list[int]]] = []

    def observe(self, tokens: Series[int]) -> None:
        pass

    def propose(self, verify_cost: float) -> list[int]:
        return [1] * self.length if verify_cost < 1 else []

    def judge(self, num_accepted: int) -> None:
        self.judged += 1

    def recycle(self, tokens: Series[int], successors: Series[int]) -> None:
        self.recycled.append((list(tokens), list(successors)))


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


def make_scheduler(num_blocks: int, max_sequences: int = 4, max_tokens: int = 16, prefix_cache: bool = True, **options: Any) -> Scheduler:
    sizes = {"block_size": SIZE, "max_sequences": max_sequences, "max_tokens_per_step": max_tokens}
    return Scheduler(BlockPool(num_blocks), **sizes, prefix_cache=prefix_cache, **options)


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


def test_beside_streams_prompts_take_no_more_than_they_are_let() -> None:
    scheduler = make_scheduler(64, max_tokens=40)
    scheduler.add(make_sequence(0, [5] * 4, 20, draft=9))
    scheduler.commit(scheduler.plan(max_prompt_tokens=8), [Run([7])])
    for arrival in (1, 2):
        scheduler.add(make_sequence(arrival, range(100 * arrival, 100 * arrival + 20), 8))
    batch = scheduler.plan(max_prompt_tokens=8)
    assert spans(batch) == {"0": (4, 14, True), "1": (0, 8, False)}
    assert batch.num_prompt_tokens == 8
    scheduler.drop(batch.chunks[0].sequence)
    scheduler.commit(Batch(batch.chunks[1:]), [])
    assert spans(scheduler.plan(max_prompt_tokens=8)) == {"1": (8, 20, True), "2": (0, 20, True)}, "nobody streams"


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


def test_what_the_model_said_to_rejected_drafts_is_recycled() -> None:
    scheduler = make_scheduler(8)
    sequence = make_sequence(0, [5], 9, draft=3)
    scheduler.add(sequence)
    scheduler.commit(scheduler.plan(), [Run([7])])
    scheduler.commit(scheduler.plan(), [Run([1, 4], likeliest=[1, 4, 5, 6])])  # of three drafted tokens the first held
    assert isinstance(sequence.drafter, Parrot)
    assert sequence.drafter.recycled == [([1, 1], [5, 6])]
    scheduler.commit(scheduler.plan(), [Run([1, 1, 1, 4], likeliest=[1, 1, 1, 4])])  # all held: nothing to learn
    assert len(sequence.drafter.recycled) == 1


def test_an_end_within_a_draft_leaves_nothing_behind_it() -> None:
    scheduler = make_scheduler(8)
    sequence = make_sequence(0, [5, 6], 20, draft=7)
    scheduler.add(sequence)
    scheduler.commit(scheduler.plan(), [Run([7])])
    (emission,) = scheduler.commit(scheduler.plan(), [Run([1, 1, 0, 1, 1, 1, 1, 8])])  # all seven held, and the third is the end
    assert (emission.tokens, emission.finish_reason) == ((1, 1, 0), "stop")
    assert (emission.num_drafted, emission.num_accepted) == (7, 3)
    assert scheduler.pool.num_cached == 1, "of tokens 5 6 7 1 1 0 only the first block is full"
    scheduler.check()


def test_expensive_tokens_are_not_drafted() -> None:
    scheduler = make_scheduler(8)
    scheduler.add(make_sequence(0, [5] * 4, 9, draft=3))
    scheduler.commit(scheduler.plan(), [Run([7])])
    assert len(scheduler.plan(verify_cost=0.1).chunks[0].draft) == 3
    assert scheduler.plan(verify_cost=1.5).chunks[0].draft == []


def test_a_drafter_with_nothing_to_say_is_asked_only_now_and_then() -> None:
    """While drafts rest; one that drafts is asked at every step all the same."""
    scheduler, asked = make_scheduler(64), []
    sequences = [make_sequence(arrival, [5, 6 + arrival], 40, draft=1) for arrival in range(2)]
    for sequence in sequences:
        scheduler.add(sequence)
    sequences[0].drafter.propose = lambda verify_cost: asked.append(step) or []
    for step in range(12):
        batch = scheduler.plan(draft_every=4)
        assert [len(chunk.draft) for chunk in batch.chunks] == ([0, 0] if step == 0 else [0, 1])
        scheduler.commit(batch, [Run([7]) for _ in batch.sampling])
    assert asked == [1, 5, 9]


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


def prompts_to_end(scheduler: Scheduler) -> list[Batch]:
    """Plan and commit until every sequence has emitted its tokens; every batch holds each block's new tokens once."""
    batches = []
    while scheduler.running or scheduler.waiting:
        batches.append(scheduler.plan())
        scheduler.commit(batches[-1], [Run([7]) for _ in batches[-1].sampling])
        scheduler.check()
    return batches


def test_choices_of_one_prompt_compute_its_blocks_once_and_share_them() -> None:
    scheduler = make_scheduler(40, max_sequences=6, max_tokens=16)
    prompt = list(range(100, 143))  # 10 full blocks and 3 tokens
    for arrival in range(6):
        scheduler.add(make_sequence(arrival, prompt, 5))
    batches = prompts_to_end(scheduler)
    assert [batch.num_tokens for batch in batches[:3]] == [16, 16, 11], "the others wait for the one that computes"
    assert [len(batch.chunks) for batch in batches[:4]] == [1, 1, 1, 6]
    assert scheduler.counters.tokens_computed == 43 + 5 * 3 + 6 * 4
    assert scheduler.counters.cached_tokens == 5 * 40


def test_choices_hold_the_shared_blocks_and_a_tail_each() -> None:
    scheduler = make_scheduler(40, max_sequences=6, max_tokens=60)
    sequences = [make_sequence(arrival, range(100, 143), 5) for arrival in range(6)]
    for sequence in sequences:
        scheduler.add(sequence)
    for _ in range(2):
        batch = scheduler.plan()
        scheduler.commit(batch, [Run([7]) for _ in batch.sampling])
    assert scheduler.pool.num_held == 10 + 6
    assert [s.num_cached_tokens for s in sequences] == [0, 40, 40, 40, 40, 40]


def test_one_that_waits_for_a_block_goes_on_by_itself_when_the_other_is_gone() -> None:
    scheduler = make_scheduler(40, max_tokens=16)
    first, second = (make_sequence(arrival, range(100, 160), 5) for arrival in range(2))
    for sequence in (first, second):
        scheduler.add(sequence)
    batch = scheduler.plan()
    assert list(spans(batch)) == ["0"]
    scheduler.commit(batch, [])
    scheduler.drop(first)
    assert spans(scheduler.plan()) == {"1": (16, 32, False)}, "what the other has computed is kept"


def test_prompts_that_part_are_computed_side_by_side_from_there() -> None:
    scheduler = make_scheduler(40, max_tokens=40)
    common = list(range(100, 108))
    for arrival in range(3):
        scheduler.add(make_sequence(arrival, [*common, *range(200 + 20 * arrival, 210 + 20 * arrival)], 5))
    batch = scheduler.plan()
    assert spans(batch) == {"0": (0, 18, True)}
    scheduler.commit(batch, [Run([7])])
    assert spans(scheduler.plan()) == {"0": (18, 19, True), "1": (8, 18, True), "2": (8, 18, True)}


def test_a_newcomer_leaves_every_running_sequence_a_block_to_grow_into() -> None:
    scheduler = make_scheduler(7, prefix_cache=False)
    for arrival in range(3):
        scheduler.add(make_sequence(arrival, [5 + arrival] * 8, 9))
    assert list(spans(scheduler.plan())) == ["0", "1"], "the third would fit, and leave no block to the two"


def test_a_preempted_sequence_is_copied_out_and_back_in() -> None:
    scheduler = make_scheduler(5, prefix_cache=False, swap_blocks=3)
    for arrival in range(2):
        scheduler.add(make_sequence(arrival, [5 + arrival] * (7 + arrival), 9 - arrival))
    batches = prompts_to_end(scheduler)
    (out,) = [copy for batch in batches for copy in batch.copies_out]
    (back,) = [copy for batch in batches for copy in batch.copies_in]
    assert out[0] == back[0]
    assert len(out[1]) == len(back[1]) == 3
    assert scheduler.counters.tokens_computed == 7 + 8 + 8 + 7, "nothing is computed twice"
    assert scheduler.counters.swapped == scheduler.counters.preemptions == 1


def test_what_the_prefix_cache_still_has_is_not_copied_in() -> None:
    scheduler = make_scheduler(9, swap_blocks=9)
    old, young = make_sequence(0, [5] * 15, 13), make_sequence(1, range(20, 36), 12)
    for sequence in (old, young):
        scheduler.add(sequence)
    batches = prompts_to_end(scheduler)
    (out,) = [copy for batch in batches for copy in batch.copies_out]
    (back,) = [copy for batch in batches for copy in batch.copies_in]
    assert 0 < len(back[1]) < len(out[1]), "the first blocks were still there"
    assert scheduler.counters.tokens_computed == 15 + 16 + 12 + 11


def test_copies_of_a_dropped_sequence_are_dropped_by_the_next_batch() -> None:
    scheduler = make_scheduler(5, prefix_cache=False, swap_blocks=3)
    old, young = make_sequence(0, [5] * 7, 9), make_sequence(1, [6] * 8, 8)
    for sequence in (old, young):
        scheduler.add(sequence)
    while young.host_copy is None:
        batch = scheduler.plan()
        scheduler.commit(batch, [Run([7]) for _ in batch.sampling])
    key = young.host_copy.key
    scheduler.drop(young)
    scheduler.drop(old)
    assert scheduler.plan() == Batch([], [], [(key, [])])
    scheduler.check()


def test_blocks_behind_every_window_are_given_back() -> None:
    scheduler = make_scheduler(5, max_tokens=8, window=6)
    assert scheduler.blocks_needed(100) == 5
    sequence = make_sequence(0, range(100, 140), 30)
    scheduler.add(sequence)
    while scheduler.running or scheduler.waiting:
        batch = scheduler.plan()
        for chunk in batch.chunks:  # every position from window - 1 before the chunk on is in a block it holds
            assert sequence.num_behind * SIZE <= max(0, chunk.start - 5)
            assert scheduler.pool.num_held == len(sequence.blocks) - sequence.num_behind <= 5
        scheduler.commit(batch, [Run([7]) for _ in batch.sampling])
        scheduler.check()
    assert len(sequence.emitted) == 30


def test_a_prefix_is_found_by_what_its_window_still_sees() -> None:
    scheduler = make_scheduler(8, max_tokens=8, window=6)
    first, second = (make_sequence(arrival, range(100, 140), 2) for arrival in range(2))
    for sequence in (first, second):
        scheduler.add(sequence)
        prompts_to_end(scheduler)
    assert second.num_cached_tokens == 36, "long before the eight blocks could hold all ten of the prompt"
    assert scheduler.counters.tokens_computed == 41 + 5


def test_the_state_of_a_sequence_that_gives_it_up_is_forgotten() -> None:
    forgotten: list[int] = []
    scheduler = make_scheduler(5, prefix_cache=False, forget=lambda sequence: forgotten.append(sequence.arrival))
    for arrival in range(3):
        scheduler.add(make_sequence(arrival, [5 + arrival] * (7 + arrival % 2), 5))
    scheduler.drop(list(scheduler.waiting)[2])
    prompts_to_end(scheduler)
    assert forgotten == [1, 0, 1], "when preempted, and when finished; one that never ran has no state"


def test_counters_tell_of_the_queue() -> None:
    scheduler = make_scheduler(8, max_sequences=1)
    for arrival in range(2):
        scheduler.add(make_sequence(arrival, [5, 6], 1))
    list(scheduler.waiting)[1].arrived_s = 3.0
    for now_s in (1.0, 5.0):
        scheduler.commit(scheduler.plan(now_s=now_s), [Run([7])])
    assert (scheduler.counters.started, scheduler.counters.finished, scheduler.counters.queue_wait_s) == (2, 2, 1.0 + 2.0)


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
        scheduler.check()
        ages = [s.arrival for s in [*scheduler.running, *scheduler.waiting]]
        assert ages == sorted(ages)
    assert finished == set(limits)
    assert scheduler.pool.num_held == 0
    assert all(emitted[name] <= limits[name] for name in limits)
    assert scheduler.counters.tokens_generated == sum(emitted.values())
