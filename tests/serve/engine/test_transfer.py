"""KV out of one engine and into another, with a model whose tokens betray every wrong block; what has no room or no use stays out."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.kv_blocks import NOTHING, KvBlocks
from serve.engine.pins import PIN_S
from serve.engine.request import Emission, Request, Sampling
from serve.engine.toy import ToyRunner, ToyTokenizer
from tests.moving import carry, taken

SIZE = 4
GREEDY = Sampling(temperature=0, max_tokens=20, ignore_eos=True)
PROMPT = tuple(range(1, 20))
"""Four full blocks and three tokens; with its answer ten blocks."""


def make_engine(num_blocks: int = 40, window: int | None = None, **fields: Any) -> Engine:
    runner = ToyRunner(vocab_size=27, num_blocks=num_blocks, block_size=SIZE, window=window)
    config = EngineConfig(**{"block_size": SIZE, "num_blocks": num_blocks, "draft": "off", **fields})
    return Engine(runner, ToyTokenizer(), config, "toy", 100)  # type: ignore[arg-type]


def steps(engine: Engine, count: int) -> dict[str, list[Emission]]:
    """The emissions of so many steps, by request."""
    found: dict[str, list[Emission]] = {}
    for _ in range(count):
        for emission in engine.step():
            found.setdefault(emission.request_id, []).append(emission)
        engine.check()
    return found


def add(engine: Engine, name: str = "r", count: int = 0, **fields: Any) -> Request:
    """A request, and so many steps."""
    request = Request(**{"id": name, "prompt": PROMPT, "sampling": GREEDY, **fields})
    engine.add(request)
    steps(engine, count)
    return request


def answer(engine: Engine, name: str = "r") -> tuple[int, ...]:
    """The rest of a request's tokens, when everything is done."""
    return tuple(token for emission in steps(engine, 60).get(name, []) for token in emission.tokens)


def alone(**fields: Any) -> tuple[int, ...]:
    engine = make_engine()
    add(engine, **fields)
    return answer(engine)


def other(tokens: int, name: str = "other", max_tokens: int = 20, **fields: Any) -> dict[str, Any]:
    """A request of another text, different by its name."""
    first, sampling = len(name), replace(GREEDY, max_tokens=max_tokens)
    return {"name": name, "prompt": (first, *(20 + i % 7 for i in range(1, tokens))), "sampling": sampling, **fields}


# ---- what a move saves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("num_steps", range(1, 19))
def test_a_move_computes_the_last_partial_block_only(num_steps: int, prefix_cache: bool) -> None:
    source, destination = (make_engine(prefix_cache=prefix_cache) for _ in range(2))
    add(source, count=num_steps)
    num_known = len(PROMPT) + num_steps
    assert len(source.kv_chain("r")) == (num_known - 1) // SIZE
    assert carry(source, destination, "r", "t", cuts=(2, 3)) == (num_known - 1) // SIZE
    request = taken(source, "r")
    destination.add(request)
    (first,) = steps(destination, 1)["r"]
    destination.kv_release("t")
    assert first.num_computed_tokens == num_known - (num_known - 1) // SIZE * SIZE <= SIZE
    assert destination.stats()["prefill_tokens"] == first.num_computed_tokens
    assert request.emitted + first.tokens + answer(destination) == alone()
    assert destination.stats()["held_blocks"] == destination.stats()["pinned_blocks"] == 0
    steps(source, 1)
    assert source.stats()["held_blocks"] == 0


def test_in_stages_while_decoding_goes_on() -> None:
    source, destination = make_engine(), make_engine()
    add(source, count=1)
    arrived = []
    for _ in range(4):
        arrived.append(carry(source, destination, "r", "t"))
        steps(source, 4)
    destination.add(taken(source, "r"))
    steps(destination, 1)
    assert arrived == [4, 1, 1, 1]
    assert destination.stats()["kv_blocks_in"] == source.stats()["kv_blocks_out"] == 7


def test_a_shared_prompt_travels_once() -> None:
    source, destination = make_engine(), make_engine()
    sampled = replace(GREEDY, temperature=0.9, seed=5)
    for choice in range(2):
        add(source, f"r{choice}", choice=choice, sampling=sampled)
    steps(source, 10)
    chains = [set(source.kv_chain(f"r{choice}")) for choice in range(2)]
    assert len(chains[0] & chains[1]) >= 4, "the prompt is common"
    arrived = [carry(source, destination, f"r{choice}", f"t{choice}") for choice in range(2)]
    assert arrived == [len(chains[0]), len(chains[1] - chains[0])]
    for choice in range(2):
        request = taken(source, f"r{choice}")
        destination.add(request)
        assert request.emitted + answer(destination, f"r{choice}") == alone(choice=choice, sampling=sampled)
        destination.kv_release(f"t{choice}")
    assert destination.stats()["prefill_tokens"] <= 2 * SIZE


def test_tenants_do_not_see_each_others_blocks() -> None:
    source, destination = make_engine(), make_engine()
    add(source, count=5, tenant="a")
    carry(source, destination, "r", "t")
    add(source, "r2", count=5, tenant="b")
    assert destination.kv_missing(source.kv_chain("r2")) == (0, 1, 2, 3, 4)


# ---- what there is to give ---------------------------------------------------------------------------------------------


def test_there_is_no_chain_of_what_does_not_run() -> None:
    engine = make_engine(max_sequences=1)
    add(engine, count=3)
    add(engine, **other(9))
    assert engine.kv_chain("r")
    for name in ("other", "nobody"):
        assert engine.kv_chain(name) == ()
        assert engine.kv_out(name) is NOTHING
    add(engine, "high", count=1, priority=1)
    assert engine.kv_chain("r") == (), "preempted"
    assert engine.kv_chain("high")


def test_ranges_are_cut_to_what_there_is() -> None:
    engine = make_engine()
    add(engine, count=2)
    chain, whole = engine.kv_chain("r"), engine.kv_out("r")
    assert (whole.hashes, whole.parent, whole.kv_kind, whole.block_bytes) == (chain, b"", "toy", SIZE * 16)
    for first, last in ((1, 3), (3, 99), (2, None)):
        part = engine.kv_out("r", first, last)
        assert (part.hashes, part.parent) == (chain[first:last], chain[first - 1])
        assert np.array_equal(part.data, whole.data[first:last])
    assert engine.kv_out("r", 5) is engine.kv_out("r", 2, 2) is NOTHING


def test_a_chain_whose_first_blocks_are_behind_the_window_does_not_travel() -> None:
    source, destination = make_engine(window=10), make_engine(window=10)
    add(source, prompt=(1, 2, 3, 4, 5), count=3)
    assert carry(source, destination, "r", "t") == 1
    steps(source, 12)
    assert source.kv_chain("r") == ()


# ---- what stays out ----------------------------------------------------------------------------------------------------


def untouched(engine: Engine) -> bool:
    stats = engine.stats()
    return stats["free_blocks"] == stats["total_blocks"] and not stats["kv_blocks_in"] and not len(engine.scheduler.pins)


def test_another_kind_of_kv_is_not_taken() -> None:
    source, destination = make_engine(), make_engine()
    add(source, count=2)
    blocks = source.kv_out("r")
    for stranger in (replace(blocks, kv_kind="toy8"), KvBlocks("toy", 5, b"", (b"h",), np.zeros((1, 5), np.uint8)), NOTHING):
        assert destination.kv_in("t", stranger) == 0
    assert untouched(destination)


def test_behind_a_gap_nothing_is_taken() -> None:
    source, destination = make_engine(), make_engine()
    add(source, count=5)
    assert destination.kv_in("t", source.kv_out("r", 1)) == 0
    assert untouched(destination)


def test_a_part_of_the_room_is_of_use() -> None:
    source, destination = make_engine(), make_engine(12)
    add(source, count=18)
    add(destination, **other(5, max_tokens=3), count=1)
    assert carry(source, destination, "r", "t") == 8, "a block is left for the one that runs, and one for the one to come"
    assert carry(source, destination, "r", "t") == 0
    request = taken(source, "r")
    destination.add(request)
    emissions = steps(destination, 10)["r"]
    assert emissions[0].num_computed_tokens == 37 - 8 * SIZE
    assert request.emitted + tuple(t for e in emissions for t in e.tokens) == alone()


def test_where_nothing_is_free_nothing_is_taken_and_nobody_loses_a_block() -> None:
    source, destination = make_engine(), make_engine(10)
    add(source, count=5)
    add(destination, **other(32, max_tokens=8), count=1)
    assert carry(source, destination, "r", "t") == 0
    assert answer(destination, "other")
    assert destination.stats()["preemptions"] == 0


def test_twice_is_once() -> None:
    source, destination = make_engine(), make_engine()
    add(source, count=5)
    blocks = source.kv_out("r")
    assert [destination.kv_in("t", blocks) for _ in range(2)] == [5, 5]
    assert destination.kv_in("t2", blocks) == 5
    assert (destination.stats()["kv_blocks_in"], destination.stats()["held_blocks"]) == (5, 5)
    destination.kv_release("t")
    destination.check()
    assert destination.stats()["pinned_blocks"] == 5
    destination.kv_release("t2")
    assert (destination.stats()["held_blocks"], destination.stats()["cached_blocks"]) == (0, 5)


# ---- pins --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ticket", ["t", None])
def test_what_is_here_already_is_kept_for_the_request_to_come(ticket: str | None) -> None:
    source, destination = make_engine(), make_engine(14)
    add(source, count=3)
    carry(source, destination, "r", "earlier")
    destination.kv_release("earlier")
    assert destination.kv_missing(source.kv_chain("r"), ticket) == ()
    for name in ("first", "second"):  # the second finds four blocks free, and evicts the oldest
        add(destination, **other(24, name, max_tokens=1), count=1)
    assert (destination.kv_missing(source.kv_chain("r")) == ()) == (ticket == "t")


def test_a_newcomer_waits_for_the_ticket_to_end_while_others_run() -> None:
    source, destination = make_engine(), make_engine(16)
    add(source, count=5)
    add(destination, **other(4, max_tokens=40), count=1)
    assert carry(source, destination, "r", "t") == 5
    add(destination, **other(36, "newcomer", max_tokens=1), count=2)
    assert destination.kv_chain("newcomer") == ()
    assert destination.stats()["pinned_blocks"] == 5
    destination.scheduler.pins.use("t", -PIN_S)  # long ago
    assert "newcomer" in steps(destination, 1)


def test_where_nobody_runs_pins_keep_nobody_from_starting() -> None:
    source, destination = make_engine(), make_engine(12)
    add(source, count=18)
    assert carry(source, destination, "r", "t") == 9
    add(destination, **other(40, max_tokens=4))
    assert len(answer(destination, "other")) == 4


def test_where_nobody_runs_pins_keep_nobody_from_coming_back() -> None:
    source, destination = make_engine(), make_engine(12, max_sequences=1, prefix_cache=False, swap_bytes=1 << 20)
    add(source, count=18)
    add(destination, **other(30, "low", max_tokens=18), count=2)
    add(destination, **other(4, "high", max_tokens=1, priority=1), count=1)
    assert destination.stats()["swapped_blocks"] == 8
    assert carry(source, destination, "r", "t") == 9
    assert len(answer(destination, "low")) == 16
    assert destination.stats()["prefill_tokens"] == 30 + 4, "its copy came back"


def test_pins_give_way_before_a_request_of_lower_priority_does() -> None:
    source, destination = make_engine(), make_engine(20)
    add(source, count=18)
    add(destination, **other(8, "low", priority=-1), count=1)
    assert carry(source, destination, "r", "t") == 9
    add(destination, **other(33, "high", max_tokens=4, priority=1), count=1)
    assert destination.kv_chain("high")
    assert destination.stats()["preemptions"] == 0
    assert destination.stats()["pinned_blocks"] < 9


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_imports_never_cost_a_running_sequence_its_block(seed: int) -> None:
    rng = random.Random(seed)
    source = make_engine()
    for i in range(3):
        add(source, f"s{i}", prompt=tuple(rng.randint(1, 26) for _ in range(rng.randint(4, 20))))
    steps(source, 4)
    needs = [rng.randint(5, 30) for _ in range(3)]
    destination = make_engine(sum(-(-(n + 20) // SIZE) for n in needs))  # just what they need
    for i, n in enumerate(needs):
        add(destination, f"d{i}", prompt=tuple(rng.randint(1, 26) for _ in range(n)))
    num_in, num_steps = 0, 0
    while destination.has_work:
        steps(destination, 1)
        num_steps += 1
        if rng.random() < 0.5:
            num_in += carry(source, destination, f"s{rng.randrange(3)}", f"t{rng.randrange(4)}")
            destination.check()
    assert (num_steps, destination.stats()["preemptions"]) == (20, 0)
    assert num_in > 0, "the law was not put to the test"
    for i in range(4):
        destination.kv_release(f"t{i}")
    assert destination.stats()["held_blocks"] == 0
