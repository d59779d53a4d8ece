"""A batch counts its tokens as the engine's estimates need them."""

from __future__ import annotations

from serve.engine.batch import Batch, Chunk
from serve.engine.request import Request, Sampling
from serve.engine.sequence import Sequence
from serve.engine.text import TextStream
from serve.engine.toy import ToyTokenizer


def make_sequence(num_tokens: int, draft: list[int]) -> Sequence:
    request = Request(id="a", prompt=tuple(range(1, num_tokens + 1)), sampling=Sampling(seed=0))
    text = TextStream(ToyTokenizer(), request.prompt)
    sequence = Sequence(request=request, arrival=0, limit=99, stop_ids=frozenset(), text=text, drafter=None, root=b"")
    sequence.draft = draft
    return sequence


def test_prompts_streams_and_drafts_are_told_apart() -> None:
    prompt = Chunk(make_sequence(20, []), start=4, end=12, samples=False)
    last = Chunk(make_sequence(20, []), start=12, end=20, samples=True)
    stream = Chunk(make_sequence(20, [7, 8]), start=19, end=22, samples=True)
    batch = Batch([prompt, last, stream])
    assert (batch.num_tokens, batch.num_prompt_tokens) == (19, 16)
    assert batch.sampling == [last, stream]
    assert (prompt.tokens, prompt.draft) == (list(range(5, 13)), [])
    assert (stream.tokens, stream.draft) == ([20, 7, 8], [7, 8])


def test_a_chunk_that_does_not_reach_the_end_has_no_draft() -> None:
    assert Chunk(make_sequence(20, [7]), start=0, end=8, samples=False).tokens == list(range(1, 9))
