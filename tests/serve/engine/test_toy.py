"""The toy model: its logits follow what the blocks hold, and nothing else."""

from __future__ import annotations

import pytest
import torch

from serve.engine.batch import Batch, Chunk
from serve.engine.request import Request, Sampling
from serve.engine.sequence import Sequence
from serve.engine.text import TextStream
from serve.engine.toy import ToyRunner, ToyTokenizer

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)


def make_chunk(blocks: list[int], start: int = 0, end: int = len(PROMPT)) -> Chunk:
    request = Request(id="a", prompt=PROMPT, sampling=Sampling(seed=0))
    text = TextStream(ToyTokenizer(), PROMPT)
    sequence = Sequence(request=request, arrival=0, limit=99, stop_ids=frozenset(), text=text, drafter=None, root=b"")
    sequence.blocks = blocks
    return Chunk(sequence, start, end, samples=end == len(PROMPT))


def make_runner(window: int | None = None) -> ToyRunner:
    return ToyRunner(vocab_size=27, num_blocks=6, block_size=4, window=window)


def test_whole_or_in_chunks_the_logits_are_those_of_the_text() -> None:
    runner = make_runner()
    expected = runner.logits(PROMPT)
    assert torch.equal(runner.run(Batch([make_chunk([2, 5])])), expected[-1:])
    assert runner.run(Batch([make_chunk([1, 3], end=3)])).shape == (0, 27)
    assert torch.equal(runner.run(Batch([make_chunk([1, 3], start=3)])), expected[-1:])


@pytest.mark.parametrize(("window", "same"), [(None, False), (5, False), (4, True)])
def test_a_wrong_block_shows_where_it_is_seen(window: int | None, same: bool) -> None:
    runner = make_runner(window)
    runner.run(Batch([make_chunk([2, 5])]))
    mixed_up = runner.run(Batch([make_chunk([0, 5], start=7)]))
    assert torch.equal(mixed_up, runner.logits(PROMPT)[-1:]) == same


def test_copies_go_out_before_others_write_and_come_back_from_their_end() -> None:
    runner = make_runner()
    runner.run(Batch([make_chunk([0, 1])]))
    runner.run(Batch([make_chunk([1, 2], end=4)], copies_out=[(0, [0, 1])]))  # block 1 is another's now
    runner.run(Batch(copies_in=[(0, [4])]))
    assert torch.equal(runner.run(Batch([make_chunk([0, 4], start=7)])), runner.logits(PROMPT)[-1:])
    assert not runner.host


def test_letters_stand_for_tokens() -> None:
    tokenizer = ToyTokenizer()
    assert tokenizer.decode([*tokenizer.encode("tern"), 0]) == "tern"
